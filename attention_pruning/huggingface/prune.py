"""Put prune masks into a transformers model, read them back, take them out."""

from __future__ import annotations

from collections.abc import Mapping

from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import InputError
from ..mask import PruneMask
from ..ops.choice import BACKENDS
from ..recipe import require_choice
from .attention_site import SITE_ATTRIBUTE, AttentionSite, Steps
from .forward import IMPLEMENTATION
from .given import Mask, Masks, Patterns, masks_by_site, named
from .output_attentions import stop_telling, tell_of_attentions
from .sites import AttentionStack, find_stacks

CONFIG_FORMAT = "attention-pruning/model/1"
#: The ``attn_implementation`` in the config.json of a pruned model. transformers refuses to load a folder with an
#: implementation that it does not know, and quotes its name; ``saving`` makes it known. So a program that lacks the
#: import cannot run the model dense without saying so.
SAVED_IMPLEMENTATION = (
    "attention_pruning: this model has prune masks; import attention_pruning.huggingface before loading it, or load it "
    "without them by attn_implementation='sdpa'"
)


def prune_model(
    model: PreTrainedModel,
    masks: Masks | Patterns,
    backend: str = "auto",
    beyond: str = "error",
    *,
    tau: float | str | None = None,
    **recipe: object,
) -> PreTrainedModel:
    """Make a model attend under masks, in training, evaluation and generation alike.

    Parameters
    ----------
    model : PreTrainedModel
        Changed in place. Masks that it had before are gone.
    masks : PruneMask, DistanceMask or AttentionPattern, or several
        One for each site that is to be pruned (``find_stacks(model)`` names the sites), alone, in a list, or by site;
        other sites stay dense. A DistanceMask holds for sequences of any length. Patterns, such as
        ``collect_patterns`` returns, become masks by ``tau``.
    backend : {"auto", "block_sparse", "flex", "triton", "reference"}
        What computes pruned attention: the fastest ("auto"), the compiled kernel or FlexAttention where the mask prunes
        blocks (see ``pruned_attention``), or the readable one. A call that the backend cannot compute, such as one of
        sequences padded on the left, is computed by torch's SDPA under the same mask; a warning says why, once for each
        site and reason.
    beyond : {"error", "dense"}
        What happens to positions beyond the mask: refuse the sequence, or leave them unpruned.
    tau : float or str, optional
        The share of every pattern to prune; only with patterns.
    **recipe
        How, beside tau: the other arguments of ``make.from_pattern`` (rule, scope, block_size, row_floor...).

    Returns
    -------
    PreTrainedModel
        The same model, its attention implementation set to "attention_pruning".

    Raises
    ------
    InputError
        If the model is not supported, a mask was made for another site or shape of model, or masks are neither masks
        nor patterns with a tau. Nothing is changed then.
    """
    attach_masks(model, masks_by_site(masks, tau, recipe), backend, beyond)
    return use_implementation(model)


def unprune_model(model: PreTrainedModel, attn_implementation: str = "sdpa") -> PreTrainedModel:
    """Take every mask out of a model and give it back to an implementation of transformers' own."""
    _detach(find_stacks(model))
    stop_telling(model)
    _set_config(model, None)
    set_implementation(model, attn_implementation)
    return model


def model_masks(model: PreTrainedModel) -> dict[str, Mask]:
    """The masks in a model, by site; empty for a dense one."""
    sites = (module for module in model.modules() if isinstance(module, AttentionSite))
    return {site.mask.site: site.mask for site in sites if site.mask is not None}


def attach_masks(
    model: PreTrainedModel,
    masks: Mapping[str, Mask],
    backend: str = "auto",
    beyond: str = "error",
) -> None:
    """:func:`prune_model` with masks by site, without the choice of the attention implementation."""
    require_choice("backend", backend, BACKENDS)
    require_choice("beyond", beyond, ("error", "dense"))
    stacks = find_stacks(model)
    for site, mask in masks.items():
        _check(model, stacks, site, mask)
    _detach(stacks)
    attach_sites(stacks, masks, backend, beyond)
    tell_of_attentions(model)
    _set_config(model, {"format": CONFIG_FORMAT, "backend": backend, "beyond": beyond, "masks": _describe(masks)})


def implementations(model: PreTrainedModel) -> list[tuple[PreTrainedConfig, str]]:
    """Every configuration that decides about attention, with the implementation that it names."""
    owners = [part for part in model.modules() if isinstance(part, PreTrainedModel)]
    owners += [module for stack in find_stacks(model).values() for module in stack.modules]
    configs = {id(owner.config): owner.config for owner in owners if hasattr(owner, "config")}
    return [(config, config._attn_implementation) for config in configs.values()]


def set_implementation(model: PreTrainedModel, name: str) -> None:
    """``set_attn_implementation`` on a model and on all its parts.

    transformers passes it on only to submodels whose configuration is of another class and is still the one that their
    layers hold: not so in T5 and in models put together from two.
    """
    for part in model.modules():
        if isinstance(part, PreTrainedModel) and part.config._attn_implementation != name:
            part.set_attn_implementation(name)
    for stack in find_stacks(model).values():
        for module in stack.modules:
            if hasattr(module, "config") and module.config._attn_implementation != name:
                module.config._attn_implementation = name


def use_implementation(model: PreTrainedModel) -> PreTrainedModel:
    """Set the implementation "attention_pruning", and make sure that every part of the model took it.

    Raises
    ------
    InputError
        If transformers does not let the model, or a part of it, change its implementation.
    """
    set_implementation(model, IMPLEMENTATION)
    for config, found in implementations(model):
        if found != IMPLEMENTATION:
            raise InputError(
                f"{type(model).__name__}: expected {type(config).__name__} to take the attention implementation "
                f"{IMPLEMENTATION!r}, found it at {found!r}: transformers cannot change this model's"
            )
    return model


def attach_sites(
    stacks: Mapping[str, AttentionStack],
    masks: Mapping[str, Mask],
    backend: str = "auto",
    beyond: str = "error",
) -> None:
    """Give the modules of the stacks their AttentionSite, where they have a mask or have to tell a position."""
    cross = stacks.get("enc-dec")
    steps = [Steps() for _ in cross.modules] if cross is not None and "enc-dec" in masks else None
    for name, stack in stacks.items():
        shares_steps = steps is not None and name in ("dec-self", "enc-dec")
        if name not in masks and not shares_steps:
            continue
        for layer, module in enumerate(stack.modules):
            site = AttentionSite(stack, layer, masks.get(name), backend, beyond, steps[layer] if shares_steps else None)
            module.add_module(SITE_ATTRIBUTE, site)


def _detach(stacks: Mapping[str, AttentionStack]) -> None:
    for stack in stacks.values():
        for module in stack.modules:
            module._modules.pop(SITE_ATTRIBUTE, None)


def _check(model: PreTrainedModel, stacks: Mapping[str, AttentionStack], site: str, mask: Mask) -> None:
    title, mask_title = type(model).__name__, named(mask)
    if site not in stacks:
        raise InputError(f"{mask_title}: expected a site of {title}, {' or '.join(stacks)}, found {site}")
    stack = stacks[site]
    for fact, whose in (("layers", "the model"), ("heads", "the model"), ("causal", f"{site} in {title}")):
        expected, found = getattr(stack, fact), getattr(mask, fact)
        if found != expected:
            raise InputError(f"{mask_title}: expected {fact} {expected}, that of {whose}, found {found}")
    if isinstance(mask, PruneMask) and not stack.cross and mask.query_length != mask.key_length:
        raise InputError(
            f"{mask_title}: expected as many keys as queries, since {title} has no memory, found "
            f"{mask.query_length} queries and {mask.key_length} keys"
        )


def _describe(masks: Mapping[str, Mask]) -> dict[str, dict[str, object]]:
    facts = ("fingerprint", "kind", "tau", "rule", "scope", "row_floor", "block_size", "seed", "effective_sparsity")
    return {
        site: {"file": f"prune_mask.{site}.safetensors"} | {fact: getattr(mask, fact) for fact in facts}
        for site, mask in masks.items()
    }


def _set_config(model: PreTrainedModel, prune_config: dict[str, object] | None) -> None:
    settings = {"prune_config": prune_config, "attn_implementation": SAVED_IMPLEMENTATION}
    for name, value in settings.items():
        if prune_config is not None:
            setattr(model.config, name, value)
        elif hasattr(model.config, name):
            delattr(model.config, name)
