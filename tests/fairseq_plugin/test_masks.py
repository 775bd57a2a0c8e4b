"""From flags and files to the masks in a model, and what a model makes of a checkpoint's masks."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_pruning import AttentionPattern, InputError
from attention_pruning.make import from_pattern, random_like, window_like
from attention_pruning.sparsity import cell_counts
from plugin.sparsity import sparsities
from tiny_translation import LAYERS, build, prune_flags

SITES = ("enc-self", "dec-self", "enc-dec")
MODULES = {"enc-self": "encoder.layers.{}.self_attn", "dec-self": "decoder.layers.{}.self_attn"}
MODULES["enc-dec"] = "decoder.layers.{}.encoder_attn"


def cells_of(model, site):
    return torch.stack([model.state_dict()[f"{MODULES[site].format(layer)}.prune_mask"] for layer in range(LAYERS)])


def library_mask(file, **options):
    return from_pattern(AttentionPattern.load(file), **options)


@pytest.mark.parametrize("block_size", [1, 3])
@pytest.mark.parametrize("rule", ["published", "allowed"])
@pytest.mark.parametrize("scope", ["layer", "row"])
def test_the_masks_are_those_of_the_library(task, pattern_files, rule, scope, block_size):
    flags = prune_flags(pattern_files, SITES, tau="0.7", rule=rule, scope=scope, block_size=block_size)
    model = build(task, **flags)
    for site in SITES:
        mask = library_mask(pattern_files[site], tau=0.7, rule=rule, scope=scope, block_size=block_size)
        assert torch.equal(cells_of(model, site), torch.stack([mask.cells(layer) for layer in range(LAYERS)]))


def test_random_masks_depend_on_their_seed_alone_and_prune_as_much(task, pattern_files):
    seeds = {"first": {}, "again": {"prune_seed": 1}, "other": {"prune_seed": 2}}
    models = {
        name: build(task, seed=number, **prune_flags(pattern_files, SITES, RANDOM_PRUNE=True, **seed))
        for number, (name, seed) in enumerate(seeds.items())
    }
    for site in SITES:
        first, again, other = (cells_of(model, site) for model in models.values())
        assert torch.equal(first, again) and not torch.equal(first, other)
        data = library_mask(pattern_files[site], tau=0.6, rule="allowed")
        allowed = data.allowed
        for layer in range(LAYERS):
            assert (first[layer] & allowed).sum() == (data.cells(layer) & allowed).sum()


@pytest.mark.parametrize("make", [lambda mask: mask, window_like, lambda mask: random_like(mask, 5)])
def test_a_mask_file_needs_no_tau_and_contradicts_none(task, pattern_files, tmp_path, make):
    mask = make(library_mask(pattern_files["dec-self"], tau=0.5, rule="allowed"))
    mask.save(tmp_path / "mask.safetensors")
    flags = prune_flags({"dec-self": tmp_path / "mask.safetensors"}, ("dec-self",))
    del flags["TAU"], flags["rule"]
    model = build(task, **flags)
    assert torch.equal(cells_of(model, "dec-self"), torch.stack([mask.cells(layer) for layer in range(LAYERS)]))
    assert model.record["dec-self"]["kind"] == mask.kind and model.record["dec-self"]["tau"] == 0.5
    with pytest.raises(InputError, match="expected tau 0.6, as given, found 0.5"):
        build(task, **flags, TAU="0.6")
    if mask.kind != "data":
        with pytest.raises(InputError, match=f"for --RANDOM_PRUNE, found a {mask.kind} mask"):
            build(task, **flags, RANDOM_PRUNE=True)


BAD_FLAGS = [
    ({"PRUNE_BOOL": True}, "--PRUNE_BOOL: expected one of --PRUNE_ENC_SELF_ATTN"),
    ({"PRUNE_ENC_SELF_ATTN": True}, "--PRUNE_ENC_SELF_ATTN: expected --PRUNE_BOOL"),
    (
        {"PRUNE_BOOL": True, "PRUNE_ENC_DEC_ATTN": True},
        "--PRUNE_ENC_DEC_ATTN: expected --ENCODER_DECODER_ATTN_PATH FILE",
    ),
    (
        {"DECODER_SELF_ATTN_PATH": "{dec-self}"},
        "--DECODER_SELF_ATTN_PATH: expected --PRUNE_BOOL and --PRUNE_DEC_SELF_ATTN",
    ),
    ({"TAU": "0.5"}, "--TAU: expected --PRUNE_BOOL"),
    ({"RANDOM_PRUNE": True}, "--RANDOM_PRUNE: expected --PRUNE_BOOL"),
    ({"block_size": 2}, "--block-size: expected --PRUNE_BOOL"),
    ({"row_floor": "none"}, "--row-floor: expected --PRUNE_BOOL"),
    ({"beyond_pattern": "error"}, "--beyond: expected --PRUNE_BOOL"),
    ({"prune_seed": 2}, "--prune-seed: expected --RANDOM_PRUNE"),
]
BAD_SITES = [
    ({"TAU": "90"}, "for 90 percent write 0.9"),
    ({"TAU": "90%"}, "0.9"),
    ({"TAU": "-1"}, "tau: expected a fraction"),
    ({"TAU": None}, "expected a tau, since this is a pattern"),
    ({"DECODER_SELF_ATTN_PATH": "/nowhere/at.all"}, "/nowhere/at.all: expected a safetensors file, found no such file"),
    ({"DECODER_SELF_ATTN_PATH": "{enc-self}"}, "expected site dec-self, as given, found enc-self"),
    ({"DECODER_SELF_ATTN_PATH": __file__}, "expected a whole safetensors file"),
    ({"decoder_layers": 3}, "expected layers 3, that of the model, found 2"),
    ({"decoder_attention_heads": 4}, "expected heads 4, that of the model, found 2"),
    ({"rule": "best"}, "rule"),
    ({"no_cross_attention": True, "PRUNE_ENC_DEC_ATTN": True, "ENCODER_DECODER_ATTN_PATH": "{enc-dec}"}, "enc-dec"),
]


@pytest.mark.parametrize(("flags", "message"), BAD_FLAGS + BAD_SITES)
def test_bad_flags_are_named(task, pattern_files, flags, message):
    base = {} if (flags, message) in BAD_FLAGS else prune_flags(pattern_files, ("dec-self",))
    paths = {f"{{{site}}}": str(file) for site, file in pattern_files.items()}
    flags = {name: paths.get(value, value) for name, value in flags.items()}
    with pytest.raises(InputError) as refused:
        build(task, **(base | flags))
    assert message in str(refused.value) and "\n" not in str(refused.value)


def rebuilt(task, model_args):
    """The model that fairseq builds to load a checkpoint: from its namespace, no file at hand."""
    return task.build_model(model_args, from_checkpoint=True)


def test_a_checkpoint_brings_its_masks_along(task, pattern_files, tmp_path):
    files = {site: tmp_path / file.name for site, file in pattern_files.items()}
    for site, file in pattern_files.items():
        files[site].write_bytes(file.read_bytes())
    model = build(task, **prune_flags(files, SITES))
    for file in files.values():
        file.unlink()
    twin = rebuilt(task, model.namespace)
    assert not any(cells_of(twin, site).any() for site in SITES)
    twin.load_state_dict(model.state_dict())
    for site in SITES:
        assert torch.equal(cells_of(twin, site), cells_of(model, site)) and cells_of(twin, site).any()
    assert twin.record == model.record == json.loads(model.namespace.attention_pruning)


def test_masks_of_flags_and_checkpoint_must_agree(task, pattern_files):
    flags = prune_flags(pattern_files, ("enc-self",))
    pruned, dense = build(task, **flags), build(task)
    again = build(task, seed=2, **flags)
    again.load_state_dict(pruned.state_dict())  # resume
    fresh = build(task, seed=2, **flags)
    own = cells_of(fresh, "enc-self").clone()
    fresh.load_state_dict(dense.state_dict())  # start from a dense model
    assert torch.equal(cells_of(fresh, "enc-self"), own)
    with pytest.raises(
        InputError, match="expected prune masks at no site, as the flags say, found them at encoder self_attn"
    ):
        dense.load_state_dict(pruned.state_dict())
    other = build(task, **prune_flags(pattern_files, ("enc-self",), tau=0.3))
    with pytest.raises(InputError, match="expected the prune masks that the flags give, found others"):
        other.load_state_dict(pruned.state_dict())
    elsewhere = build(task, **prune_flags(pattern_files, ("dec-self",)))
    with pytest.raises(InputError, match="expected prune masks at decoder self_attn"):
        elsewhere.load_state_dict(pruned.state_dict())
    with pytest.raises(InputError, match="found them at no site"):
        rebuilt(task, pruned.namespace).load_state_dict(dense.state_dict())
    finetuned = build(task, finetune_from_model="pruned.pt", **prune_flags(pattern_files, ("enc-self",), tau=0.3))
    finetuned.load_state_dict(pruned.state_dict())
    assert torch.equal(cells_of(finetuned, "enc-self"), cells_of(other, "enc-self"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"TAU": "0.9"}, "expected --TAU 0.6, that of its enc-self mask, found 0.9"),
        ({"PRUNE_BOOL": False}, "expected --PRUNE_BOOL"),
        ({"rule": "published"}, "expected --rule allowed, that of its enc-self mask, found published"),
        ({"scope": "row"}, "expected --scope layer, that of its enc-self mask, found row"),
        ({"block_size": 2}, "expected --block-size 1, that of its enc-self mask, found 2"),
        ({"row_floor": "none"}, "expected --row-floor keep-best, that of its enc-self mask, found none"),
        ({"RANDOM_PRUNE": True}, "expected no random mask, that of its enc-self mask, found 1"),
        ({"USE_ENTMAX": True}, "expected softmax, as it was trained, found entmax15"),
    ],
)
def test_overriding_the_pruning_of_a_checkpoint_is_refused(task, pattern_files, change, message):
    model = build(task, **prune_flags(pattern_files, ("enc-self",)))
    vars(model.namespace).update(change)
    with pytest.raises(InputError, match=message):
        rebuilt(task, model.namespace)


def test_what_happens_beyond_the_pattern_is_for_the_user_of_a_checkpoint_to_say(task, pattern_files):
    model = build(task, **prune_flags(pattern_files, ("enc-self",)))
    for beyond in ("error", "dense", "decoding"):
        model.namespace.beyond_pattern = beyond
        assert rebuilt(task, model.namespace).encoder.layers[0].self_attn.beyond_pattern == beyond
    dense = build(task)
    dense.namespace.beyond_pattern = "dense"  # as generate.py does for any checkpoint
    rebuilt(task, dense.namespace)


@pytest.mark.parametrize("floor", ["keep-best", "none"])
def test_a_row_may_lose_all_its_keys_if_asked(task, pattern_files, floor):
    model = build(task, **prune_flags(pattern_files, ("enc-self",), tau=0.9, scope="layer", row_floor=floor))
    mask = library_mask(pattern_files["enc-self"], tau=0.9, rule="allowed", row_floor=floor)
    assert torch.equal(cells_of(model, "enc-self"), torch.stack([mask.cells(layer) for layer in range(LAYERS)]))
    assert (model.record["enc-self"]["empty_rows"] > 0) == (floor == "none")


def test_every_architecture_of_the_transformer_has_its_twin():
    from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_INV_REGISTRY

    stock, twins = set(ARCH_MODEL_INV_REGISTRY["transformer"]), set(ARCH_MODEL_INV_REGISTRY["ap_transformer"])
    assert {"transformer_iwslt_de_en", "transformer_wmt_en_de", "transformer_vaswani_wmt_en_de_big"} <= stock
    assert twins == {f"ap_{name}" for name in stock}
    import argparse

    for name in stock:
        theirs, ours = argparse.Namespace(), argparse.Namespace()
        ARCH_CONFIG_REGISTRY[name](theirs)
        ARCH_CONFIG_REGISTRY[f"ap_{name}"](ours)
        assert theirs == ours


LENGTHS = st.lists(st.tuples(st.integers(1, 7), st.integers(1, 7)), min_size=1, max_size=12)


@given(LENGTHS)
@settings(max_examples=50, deadline=None)
def test_cell_counts_equal_a_loop_over_sentences(lengths):
    queries, keys = [t for t, _ in lengths], [s for _, s in lengths]
    expected = torch.zeros(max(queries), max(keys), dtype=torch.int64)
    for t, s in lengths:
        expected[:t, :s] += 1
    assert torch.equal(cell_counts(queries, keys, causal=False), expected)
    expected = torch.zeros(max(queries), max(queries), dtype=torch.int64)
    for t in queries:
        expected[:t, :t] += torch.ones(t, t, dtype=torch.int64).tril()
    assert torch.equal(cell_counts(queries, queries, causal=True), expected)


@pytest.mark.parametrize("sites", [("enc-self",), ("dec-self",), ("enc-dec",), SITES], ids="+".join)
def test_sparsities_equal_those_of_a_loop(task, pattern_files, sites):
    model, dataset = build(task, **prune_flags(pattern_files, sites)), task.dataset("test")
    pruned = used = removed = allowed = 0
    for site in sites:
        mask = library_mask(pattern_files[site], tau=0.6, rule="allowed")
        for layer in range(LAYERS):
            cells = mask.cells(layer)
            removed += int((cells & mask.allowed).sum())
            allowed += int(mask.allowed.sum()) * len(cells)
            for source, target in zip(dataset.src_sizes, dataset.tgt_sizes, strict=True):
                shape = (source if site == "enc-self" else target), (target if site == "dec-self" else source)
                visible = torch.ones(*map(int, shape)).tril() if site == "dec-self" else torch.ones(*map(int, shape))
                part = cells[:, : shape[0], : shape[1]]
                pruned += int((part & visible[: part.size(1), : part.size(2)].bool()).sum())
                used += int(visible.sum()) * len(cells)
    found = sparsities(model, model.record, dataset)
    assert found["evaluated_sparsity"] == pytest.approx(pruned / used)
    assert found["effective_sparsity"] == pytest.approx(removed / allowed)
    assert sparsities(build(task), {}, dataset) == dict.fromkeys(found, 0.0)
