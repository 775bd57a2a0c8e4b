"""Masks travel with a model: ``save_pretrained`` writes them beside the weights, ``from_pretrained`` brings them back.

transformers offers no hook for this, so its two methods are extended once, when the package is imported. A folder then
holds ``config.json`` with ``prune_config``, the weights, and one ``prune_mask.SITE.safetensors`` for each pruned site.
Its ``attn_implementation`` is a name that only this package registers, see ``prune.SAVED_IMPLEMENTATION``.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask
from transformers.utils import cached_file

from ..errors import InputError
from ..files.load import load_made_mask
from .forward import IMPLEMENTATION, attention_pruning_forward
from .given import Mask, masks_by_site
from .prune import CONFIG_FORMAT, SAVED_IMPLEMENTATION, attach_masks, model_masks, use_implementation

#: Arguments of from_pretrained that say where its files are.
_WHERE = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")


def extend_saving() -> None:
    """Extend ``PreTrainedModel.save_pretrained`` and ``from_pretrained``; a second call does nothing."""
    if hasattr(PreTrainedModel.save_pretrained, "_attention_pruning"):
        return
    AttentionInterface.register(SAVED_IMPLEMENTATION, _without_masks)
    AttentionMaskInterface.register(SAVED_IMPLEMENTATION, sdpa_mask)
    PreTrainedModel.save_pretrained = _extended_save(PreTrainedModel.save_pretrained)
    PreTrainedModel.from_pretrained = classmethod(_extended_load(PreTrainedModel.from_pretrained.__func__))


def _without_masks(module: nn.Module, *call: object, **options: object) -> tuple[Tensor, None]:
    """Attention of a model that was built from the configuration of a pruned one (``from_config``)."""
    warnings.warn(
        "attention_pruning: this model was built from the configuration of a pruned model, not loaded, so it has no "
        "masks and runs dense; give it masks by prune_model, or make it dense by unprune_model",
        RuntimeWarning,
        stacklevel=2,
    )
    return attention_pruning_forward(module, *call, **options)


def _extended_save(original: Callable) -> Callable:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def save_pretrained(self, *args, **kwargs):
        masks = model_masks(self)
        _check_before_save(self, masks)
        given = signature.bind(self, *args, **kwargs).arguments
        if masks and given.get("push_to_hub"):
            raise InputError(
                "save_pretrained: expected no push_to_hub for a pruned model, whose masks it would leave behind; call "
                "model.push_to_hub, which takes them along"
            )
        result = original(self, *args, **kwargs)
        if given.get("is_main_process", True):
            for site, mask in masks.items():
                mask.save(Path(given["save_directory"]) / self.config.prune_config["masks"][site]["file"])
        return result

    save_pretrained._attention_pruning = True
    return save_pretrained


def _check_before_save(model: PreTrainedModel, masks: dict[str, Mask]) -> None:
    """A folder must not promise masks that the model lacks, nor drop those that it has."""
    promised = (getattr(model.config, "prune_config", None) or {}).get("masks", {})
    expected = {site: facts["fingerprint"] for site, facts in promised.items()}
    found = {site: mask.fingerprint for site, mask in masks.items()}
    if expected == found:
        return
    title = type(model).__name__
    if not found:
        raise InputError(
            f"{title}: expected the masks of its prune_config, {sorted(expected)}, found none in the model: it was "
            "loaded before attention_pruning.huggingface was imported, or built from a configuration; load it again "
            "after the import, or call unprune_model(model) to save it as the dense model that it is"
        )
    differing = sorted(site for site in expected.keys() | found.keys() if expected.get(site) != found.get(site))
    raise InputError(
        f"{title}: expected the masks of its prune_config, {sorted(expected)}, found {sorted(found)} in the model, "
        f"other ones at {', '.join(differing)}: its configuration or a part of it was changed by itself; prune_model "
        "and unprune_model on the whole model keep both in step"
    )


def _extended_load(original: Callable) -> Callable:
    @functools.wraps(original)
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        asked = kwargs.get("attn_implementation") or getattr(kwargs.get("config"), "_attn_implementation", None)
        loaded = original(cls, pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if getattr(model.config, "prune_config", None) is not None:
            where = {name: kwargs[name] for name in _WHERE if name in kwargs}
            _restore(model, pretrained_model_name_or_path, where)
            if asked in (None, IMPLEMENTATION, SAVED_IMPLEMENTATION):
                use_implementation(model)
            else:
                _warn_of_dense(pretrained_model_name_or_path, asked)
        return loaded

    return from_pretrained


def _warn_of_dense(name: str | Path, asked: str) -> None:
    warnings.warn(
        f"{name}: this model has prune masks, but runs dense, as attn_implementation={asked!r} asks; "
        f"model.set_attn_implementation({IMPLEMENTATION!r}) puts them to use",
        RuntimeWarning,
        stacklevel=3,
    )


def _restore(model: PreTrainedModel, name: str | Path, where: dict[str, object]) -> None:
    settings = model.config.prune_config
    if settings.get("format") != CONFIG_FORMAT:
        raise InputError(
            f"{name}: expected a prune_config of format {CONFIG_FORMAT!r}, found {settings.get('format')!r}"
        )
    masks = {}
    for site, facts in settings["masks"].items():
        try:
            path = cached_file(name, facts["file"], **where)
        except OSError as error:
            raise InputError(
                f"{name}: expected {facts['file']}, named in its config.json, found no such file: a program that did "
                "not import attention_pruning.huggingface saves a pruned model without its masks; copy the file from "
                "the folder that the model was loaded from, or take prune_config and attn_implementation out of "
                "config.json to load the dense model"
            ) from error
        masks[site] = load_made_mask(path)
        if masks[site].fingerprint != facts["fingerprint"]:
            raise InputError(
                f"{path}: expected fingerprint {facts['fingerprint']}, that of config.json, found "
                f"{masks[site].fingerprint}: the mask and config.json are of two models; put back the file that was "
                "saved with it, or take prune_config and attn_implementation out of config.json and call "
                "prune_model(model, PruneMask.load(file))"
            )
    attach_masks(model, masks_by_site(masks), settings["backend"], settings["beyond"])
