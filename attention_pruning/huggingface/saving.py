"""Masks travel with a model: ``save_pretrained`` writes them beside the weights, ``from_pretrained`` brings them back.

transformers offers no hook for this, so its two methods are extended once, when the package is imported. A folder then
holds ``config.json`` with ``prune_config``, the weights, and one ``prune_mask.SITE.safetensors`` for each pruned site.
"""

from __future__ import annotations

import functools
import inspect
from pathlib import Path

from transformers import PreTrainedModel
from transformers.utils import cached_file

from ..errors import InputError
from ..mask import PruneMask
from .forward import IMPLEMENTATION
from .prune import CONFIG_FORMAT, attach_masks, model_masks, use_implementation

#: Arguments of from_pretrained that say where its files are.
_WHERE = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder", "proxies")


def extend_saving() -> None:
    """Extend ``PreTrainedModel.save_pretrained`` and ``from_pretrained``; a second call does nothing."""
    if hasattr(PreTrainedModel.save_pretrained, "_attention_pruning"):
        return
    PreTrainedModel.save_pretrained = _extended_save(PreTrainedModel.save_pretrained)
    PreTrainedModel.from_pretrained = classmethod(_extended_load(PreTrainedModel.from_pretrained.__func__))


def _extended_save(original):
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


def _check_before_save(model: PreTrainedModel, masks: dict[str, PruneMask]) -> None:
    """A folder must not promise masks that the model lacks, nor drop those that it has."""
    promised = (getattr(model.config, "prune_config", None) or {}).get("masks", {})
    expected = {site: facts["fingerprint"] for site, facts in promised.items()}
    found = {site: mask.fingerprint for site, mask in masks.items()}
    if expected != found:
        raise InputError(
            f"{type(model).__name__}: expected the masks of its prune_config, {sorted(expected)}, found "
            f"{sorted(found)} in the model; prune_model and unprune_model on the whole model keep both in step"
        )


def _extended_load(original):
    @functools.wraps(original)
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        asked = kwargs.get("attn_implementation") or getattr(kwargs.get("config"), "_attn_implementation", None)
        loaded = original(cls, pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if getattr(model.config, "prune_config", None) is not None:
            where = {name: kwargs[name] for name in _WHERE if name in kwargs}
            _restore(model, pretrained_model_name_or_path, where)
            if asked in (None, IMPLEMENTATION):  # else the masks wait for set_attn_implementation
                use_implementation(model)
        return loaded

    return from_pretrained


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
                f"{name}: expected {facts['file']}, named in its config.json, found no such file"
            ) from error
        masks[site] = PruneMask.load(path)
        if masks[site].fingerprint != facts["fingerprint"]:
            raise InputError(
                f"{path}: expected fingerprint {facts['fingerprint']}, that of config.json, found "
                f"{masks[site].fingerprint}"
            )
    attach_masks(model, masks, settings["backend"], settings["beyond"])
