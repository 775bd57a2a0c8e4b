"""What a pattern or a mask is, how sparse it is and what it was made from: as a dictionary, and as text to read."""

from __future__ import annotations

from ..distance_mask import DistanceMask
from ..mask import PruneMask
from ..pattern import AttentionPattern

#: The block sizes of common kernels; those longer than the attention are left out.
KERNEL_BLOCKS = (16, 32, 64)
#: Lengths at which the sparsity of a mask by distance is told.
LENGTHS = (512, 2048, 8192)


def describe(thing: AttentionPattern | PruneMask | DistanceMask) -> dict[str, object]:
    """All facts of a file, ready for JSON."""
    if isinstance(thing, DistanceMask):
        return _of_distances(thing)
    facts = {
        "file": thing.source,
        "what": "pattern" if isinstance(thing, AttentionPattern) else "mask",
        "site": thing.site,
        "causal": thing.causal,
        "layers": thing.layers,
        "heads": thing.heads,
        "queries": thing.query_length,
        "keys": thing.key_length,
    }
    facts |= _of_pattern(thing) if isinstance(thing, AttentionPattern) else _of_mask(thing)
    visible, allowed = int(thing.visible.sum()), int(thing.allowed.sum())
    facts |= {
        "structural_zeros": 1 - visible / thing.visible.numel(),
        "observed_of_visible": allowed / visible,
        "fingerprint": thing.fingerprint,
        "metadata": thing.metadata,
    }
    return facts


def _of_distances(mask: DistanceMask) -> dict[str, object]:
    lengths = sorted({mask.observed, *LENGTHS} - {0})
    names = ("site", "causal", "layers", "heads", "kind", "scope", "block_size", "tau", "sinks", "span", "observed")
    return {
        "file": mask.source,
        "what": "mask by distance, for any length",
        **{name: getattr(mask, name) for name in names},
        "sparsity_at_length": {str(length): mask.sparsity(length) for length in lengths},
        "fingerprint": mask.fingerprint,
        "metadata": mask.metadata,
    }


def _of_pattern(pattern: AttentionPattern) -> dict[str, object]:
    counts = pattern.count[pattern.allowed]
    return {
        "pool": pattern.pool,
        "fewest_observations": int(counts.min()) if counts.numel() else 0,
        "most_observations": int(counts.max()) if counts.numel() else 0,
    }


def _of_mask(mask: PruneMask) -> dict[str, object]:
    shortest = min(mask.query_length, mask.key_length)
    return {
        "kind": mask.kind,
        "seed": mask.seed,
        "rule": mask.rule,
        "scope": mask.scope,
        "row_floor": mask.row_floor,
        "block_size": mask.block_size,
        "nominal_sparsity": mask.nominal_sparsity,
        "effective_sparsity": mask.effective_sparsity,
        "layer_sparsity": mask.layer_sparsity,
        "block_sparsity": {str(size): mask.block_sparsity(size) for size in KERNEL_BLOCKS if size <= shortest},
        "empty_rows": mask.empty_rows,
    }


def describe_overlap(mask: PruneMask, other: PruneMask) -> dict[str, object]:
    """How much two masks prune in common, ready for JSON."""
    overlap = mask.overlap(other)
    return {
        "files": [mask.source, other.source],
        "effective_sparsity": [mask.effective_sparsity, other.effective_sparsity],
        "overlap": float(overlap.mean()),
        "overlap_by_head": {f"layer {layer}": heads for layer, heads in enumerate(overlap.tolist())},
    }


def as_text(facts: dict[str, object]) -> str:
    """The same facts, one a line, shares with four digits."""
    lines = []
    for name, value in facts.items():
        if isinstance(value, dict):
            lines.append(f"{_words(name)}:" + ("" if value else " none"))
            lines += [f"  {inner}: {_shown(found)}" for inner, found in value.items()]
        else:
            lines.append(f"{_words(name)}: {_shown(value)}")
    return "\n".join(lines)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _shown(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:.4f}"
    if isinstance(value, list):
        return " ".join(map(_shown, value))
    return str(value)
