"""Where the weights of our model stand in checkpoints of others: one map, read in both directions.

The authors' PyTorch code ("upstream") and ``TransfoXLLMHeadModel`` of transformers 4.35 ("transformers") give the same
tensors nearly the same names. They differ from ours in this:

- the biases of the softmax stand cluster by cluster, and relative biases that are not shared, layer by layer;
- weights and projections that softmax and embedding share are there twice;
- the rows of the softmax's clusters are read from the end upstream: the first row is of the last cluster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import EllipsisType

import torch
from torch import Tensor

from attention_pruning import InputError
from model_config import ModelConfig
from model_shapes import model_shapes

#: Not a weight: the frequencies of positions, the same in every model.
BUFFERS = {"upstream": "pos_emb.inv_freq", "transformers": "transformer.pos_emb.inv_freq"}
LAYOUTS = tuple(BUFFERS)
#: Weights of a layer that are ours, then theirs.
_OF_A_LAYER = {
    **{f"dec_attn.{name}": f"dec_attn.{name}" for name in ("qkv_net.weight", "r_net.weight", "o_net.weight")},
    **{
        f"{ours}.{name}": f"{theirs}.{name}"
        for name in ("weight", "bias")
        for ours, theirs in (
            ("dec_attn.layer_norm", "dec_attn.layer_norm"),
            ("pos_ff.inner", "pos_ff.CoreNet.0"),
            ("pos_ff.outer", "pos_ff.CoreNet.3"),
            ("pos_ff.layer_norm", "pos_ff.layer_norm"),
        )
    },
}


@dataclass(frozen=True)
class Place:
    """A tensor of ours that another layout has under some name.

    Attributes
    ----------
    name : str
        In our model.
    part : int or slice or ...
        What of it, by its first axis.
    reversed_rows : bool
        Whether the rows stand the other way round there.
    again : bool
        Whether this is a second copy of what another name holds.
    """

    name: str
    part: int | slice | EllipsisType = ...
    reversed_rows: bool = False
    again: bool = False

    def read(self, weights: Mapping[str, Tensor]) -> Tensor:
        """The tensor as it stands there."""
        part = weights[self.name][self.part]
        return part.flip(0) if self.reversed_rows else part


def places(config: ModelConfig, layout: str) -> dict[str, Place]:
    """The map: every name of a layout, the copies of shared weights last.

    Parameters
    ----------
    config : ModelConfig
    layout : {"upstream", "transformers"}
    """
    if layout not in LAYOUTS:
        raise ValueError(f"layout: expected one of {LAYOUTS}, found {layout!r}")
    stem = "transformer." if layout == "transformers" else ""
    found = {stem + name: place for name, place in _model_places(config)}
    found |= dict(_softmax_places(config, cluster_rows_reversed=layout == "upstream"))
    if layout == "transformers" and not config.untie_r:  # a layer holds the biases of all layers as its own
        for layer in range(config.n_layer):
            for name in ("r_w_bias", "r_r_bias"):
                found[f"{stem}layers.{layer}.dec_attn.{name}"] = Place(name, again=True)
    return dict(sorted(found.items(), key=lambda item: item[1].again))


def _model_places(config: ModelConfig) -> Iterator[tuple[str, Place]]:
    clusters = len(config.cutoffs) + 1
    for index in range(1 if config.div_val == 1 else clusters):
        yield f"word_emb.emb_layers.{index}.weight", Place(f"word_emb.tables.{index}")
    for index in range(_embedding_projections(config)):
        yield f"word_emb.emb_projs.{index}", Place(f"word_emb.projections.{index}")
    for layer in range(config.n_layer):
        for ours, theirs in _OF_A_LAYER.items():
            yield f"layers.{layer}.{theirs}", Place(f"layers.{layer}.{ours}")
    for name in ("r_w_bias", "r_r_bias"):
        if not config.untie_r:
            yield name, Place(name)
            continue
        for layer in range(config.n_layer):
            yield f"layers.{layer}.dec_attn.{name}", Place(name, layer)


def _softmax_places(config: ModelConfig, cluster_rows_reversed: bool) -> Iterator[tuple[str, Place]]:
    bounds = [0, *config.cutoffs, config.n_token]
    if config.div_val == 1:  # one table for all clusters
        bounds = [0, config.n_token]
    for index, (low, high) in enumerate(zip(bounds, bounds[1:], strict=False)):
        table = Place(f"word_emb.tables.{index}", again=True) if config.tied else Place(f"crit.weights.{index}")
        yield f"crit.out_layers.{index}.weight", table
        yield f"crit.out_layers.{index}.bias", Place("crit.bias", slice(low, high))
    if config.cutoffs:
        for name in ("crit.cluster_weight", "crit.cluster_bias"):
            yield name, Place(name, reversed_rows=cluster_rows_reversed)
    projections = _embedding_projections(config)
    for index, tied in enumerate(config.tie_projs if projections else []):
        shared = Place(f"word_emb.projections.{min(index, projections - 1)}", again=True)
        yield f"crit.out_projs.{index}", shared if tied else Place(f"crit.projections.{index}")


def _embedding_projections(config: ModelConfig) -> int:
    """One a cluster where clusters differ in width; one for all, or none, where they do not."""
    if config.div_val > 1:
        return len(config.cutoffs) + 1
    return int(config.d_embed != config.d_model)


def to_layout(weights: Mapping[str, Tensor], config: ModelConfig, layout: str) -> dict[str, Tensor]:
    """Our weights under the names of a layout, copies of shared ones included: the same tensor twice."""
    found: dict[str, Tensor] = {}
    first: dict[str, Tensor] = {}
    for name, place in places(config, layout).items():
        found[name] = first[place.name] if place.again else place.read(weights).contiguous()
        first.setdefault(place.name, found[name])
    return found


def from_layout(
    tensors: Mapping[str, Tensor], config: ModelConfig, layout: str, source: str = "checkpoint"
) -> dict[str, Tensor]:
    """The state of our model from tensors of a layout, where copies of shared weights may be left out.

    Parameters
    ----------
    source : str
        Of the tensors, for messages.

    Raises
    ------
    InputError
        If one is missing, is not the model's, has another shape, or a copy differs from what it is a copy of.
    """
    shapes = model_shapes(config, len(tensors), source)
    expected = places(config, layout)
    if strange := sorted(set(tensors) - set(expected) - {BUFFERS[layout]}):
        raise InputError(f"{source}: expected the weights of its configuration, found {strange[0]}, too")
    empty = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    for name, place in expected.items():
        if name not in tensors and place.again:
            continue
        if name not in tensors:
            raise InputError(f"{source}: expected the weights of its configuration, found no {name}")
        shape, theirs = empty[place.name][place.part].shape, tensors[name]
        if shape != theirs.shape:
            raise InputError(f"{source}: expected {name} of shape {tuple(shape)}, found {tuple(theirs.shape)}")
        if not theirs.is_floating_point() or not torch.isfinite(theirs).all():
            raise InputError(f"{source}: expected finite numbers in {name}, found others")
    weights = {name: torch.empty(shape) for name, shape in shapes.items()}
    for name, place in expected.items():
        if name not in tensors:
            continue
        ours, theirs = weights[place.name][place.part], tensors[name].detach()
        theirs = theirs.flip(0) if place.reversed_rows else theirs
        if not place.again:
            ours.copy_(theirs)
        elif not torch.equal(ours, theirs.to(ours)):
            raise InputError(f"{source}: expected {name} to be what it is tied to, found another tensor")
    return weights
