"""fairseq's transformer with prunable attention, registered as the model ``ap_transformer``."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from fairseq.models import register_model
from fairseq.models.transformer import TransformerModel
from torch import Tensor, nn

from attention_pruning import InputError, PruneMask

from .attention import MASK_NAME, PrunedAttention
from .flags import RECORD, SITE_FLAGS, PruneFlags, add_flags
from .site_masks import check_record, describe, empty_mask, load_site_masks, model_shapes

#: And the normaliser of all its attention.
NORMALIZER = "attention_normalizer"


def adopt_attention(model: nn.Module) -> dict[str, list[PrunedAttention]]:
    """Every attention of a fairseq transformer, by site and layer, each made prunable and observable in place.

    Raises
    ------
    InputError
        If the model has no encoder and decoder layers, or attends in another way.
    """
    try:
        encoder, decoder = (_in_order(side.layers) for side in (model.encoder, model.decoder))
        if any(layer.cross_self_attention for layer in decoder):
            raise InputError("model: expected separate self- and cross-attention, found --cross-self-attention")
        for layer in encoder:
            layer.can_use_fastpath = False
        return {
            "enc-self": [PrunedAttention.adopt(layer.self_attn, "enc-self") for layer in encoder],
            "dec-self": [PrunedAttention.adopt(layer.self_attn, "dec-self") for layer in decoder],
            "enc-dec": [
                PrunedAttention.adopt(layer.encoder_attn, "enc-dec", layer.self_attn)
                for layer in decoder
                if layer.encoder_attn is not None
            ],
        }
    except AttributeError as error:
        raise InputError(f"model: expected fairseq's transformer, found {type(model).__name__} ({error})") from error


def _in_order(layers: nn.ModuleList) -> list[nn.Module]:
    return [layers[index] for index in range(len(layers))]  # iterating would draw what --layerdrop drops


@register_model("ap_transformer")
class PrunedTransformer(TransformerModel):
    """fairseq's transformer whose attention can be pruned at three sites, with softmax or entmax.

    Attributes
    ----------
    record : dict
        What is known of the masks, by site, see ``site_masks.describe``.
    read_files : bool
        Whether the masks come from files (training), not from a checkpoint.
    """

    record: dict[str, dict[str, Any]]
    read_files: bool
    replaces_masks = False

    @classmethod
    def add_args(cls, parser: argparse.ArgumentParser) -> None:
        """fairseq's flags of the transformer, and ours."""
        super().add_args(parser)
        add_flags(parser.add_argument_group("Attention Pruning", argument_default=argparse.SUPPRESS))

    @classmethod
    def build_model(cls, args: Any, task: Any) -> PrunedTransformer:
        """Build the model, and prune it: by files in training, by the record in a checkpoint's namespace else.

        Raises
        ------
        InputError
            See ``flags.PruneFlags.read`` and ``site_masks.load_site_masks``.
        """
        model = super().build_model(args, task)
        flags = PruneFlags.read(args)
        attention = adopt_attention(model)
        for modules in attention.values():
            for module in modules:
                module.normalizer, module.beyond_pattern = flags.normalizer, flags.beyond_pattern
                module.backend, module.gives_weights = flags.backend, flags.gives_weights
        recorded = getattr(args, RECORD, None)
        model.read_files = recorded is None
        if model.read_files:
            masks = load_site_masks(flags, model_shapes(args))
            model.record = {site: describe(mask) for site, mask in masks.items()}
            # fairseq saves this namespace
            setattr(args, RECORD, json.dumps(model.record, sort_keys=True))
            setattr(args, NORMALIZER, flags.normalizer)
            model.replaces_masks = getattr(args, "finetune_from_model", None) is not None
            _save(masks, args)
        else:
            model.record = json.loads(recorded)
            check_record(flags, model.record, getattr(args, NORMALIZER, None))
        for site, facts in model.record.items():
            if not attention[site]:
                raise InputError(f"--{SITE_FLAGS[site][0]}: expected a model with {site} attention, found one without")
            if not facts["prunes"]:
                continue
            for layer, module in enumerate(attention[site]):
                cells = masks[site].cells(layer) if model.read_files else empty_mask(facts, module.num_heads)
                module.register_buffer(MASK_NAME, cells.clone())
                module.block_size = facts["block_size"]
        return model

    def load_state_dict(
        self, state_dict: Mapping[str, Tensor], strict: bool = True, model_cfg: Any = None, args: Any = None
    ) -> Any:
        """As fairseq's, but a checkpoint's masks and this model's must be the same.

        A checkpoint without masks may start pruned training (``--finetune-from-model``); one with masks may start
        training with others only so.

        Raises
        ------
        InputError
            If the masks differ.
        """
        own, given = _masks_of(self.state_dict()), _masks_of(state_dict)
        if self.read_files and own and not given:
            state_dict = {**state_dict, **own}
        elif self.read_files and self.replaces_masks:
            state_dict = {name: tensor for name, tensor in state_dict.items() if name not in given} | own
        elif own.keys() != given.keys():
            raise InputError(
                f"checkpoint: expected prune masks at {_sites(own)}, as the flags say, found them at {_sites(given)}"
            )
        elif self.read_files and not all(torch.equal(own[name].cpu(), given[name].cpu()) for name in own):
            raise InputError("checkpoint: expected the prune masks that the flags give, found others in the checkpoint")
        return super().load_state_dict(state_dict, strict, model_cfg, args)


def _masks_of(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state_dict.items() if name.endswith(f".{MASK_NAME}")}


def _sites(masks: Mapping[str, Tensor]) -> str:
    return ", ".join(sorted({f"{name.split('.')[0]} {name.split('.')[-2]}" for name in masks})) or "no site"


def _save(masks: Mapping[str, PruneMask], args: Any) -> None:
    """Leave the masks of a training beside its checkpoints."""
    folder = getattr(args, "save_dir", None)
    if not masks or not folder or getattr(args, "no_save", False) or os.environ.get("RANK", "0") != "0":
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    for site, mask in masks.items():
        mask.save(Path(folder) / f"mask-{site}.safetensors")
