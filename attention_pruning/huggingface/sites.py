"""Where a transformers model attends: its attention modules, sorted into the sites of the method.

A *stack* is the attention modules of one site in the order of the layers. They are found by what they do (their class
asks the AttentionInterface for a function) and told apart by their names, where ``*`` stands for a layer's number.
"""

from __future__ import annotations

import functools
import inspect
import re
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import InputError

#: The call by which a module of transformers chooses its attention function.
_INTERFACE_CALL = "ALL_ATTENTION_FUNCTIONS.get_interface("
#: What transformers calls attention over another sequence, in module and class names.
_CROSS_NAME = re.compile(r"cross_?att|encoder_attn|enc_?dec", re.IGNORECASE)
_HEADS_NAMES = ("num_heads", "num_attention_heads", "n_heads", "n_head")


@dataclass(frozen=True)
class AttentionStack:
    """The attention modules of one site.

    Attributes
    ----------
    site : str
        ``self`` in a model with one stack, and ``self-local`` for those of its layers that attend within a sliding
        window, if others do not; ``enc-self``, ``dec-self`` and ``enc-dec`` where there is cross attention.
    causal : bool
        Whether a query sees only keys up to its own position.
    name : str
        The modules' name with ``*`` for numbers, such as ``bert.encoder.layer.*.attention.self``.
    modules : tuple of nn.Module
        One for each layer. A module that the model calls several times (ALBERT) is one layer, as its weights are.
    heads : int
        Query heads of each.
    window : int or None
        A query sees only keys that are less than so many positions away; None for no such window.
    """

    site: str
    causal: bool
    name: str
    modules: tuple[nn.Module, ...]
    heads: int
    window: int | None = None

    @property
    def cross(self) -> bool:
        """Whether keys come from another sequence than queries."""
        return self.site == "enc-dec"

    @property
    def layers(self) -> int:
        return len(self.modules)


def find_stacks(model: PreTrainedModel) -> dict[str, AttentionStack]:
    """The stacks of a model by site.

    Raises
    ------
    InputError
        If it is no transformers model, if its attention does not go through the AttentionInterface, or if its stacks
        cannot be told apart. The message says which.
    """
    if not isinstance(model, PreTrainedModel):
        raise InputError(f"model: expected a PreTrainedModel of transformers, found {type(model).__name__}")
    title = type(model).__name__
    by_name: dict[tuple[str, int | None], list[nn.Module]] = {}
    for name, module in model.named_modules():
        if _asks_interface(type(module)):
            by_name.setdefault((re.sub(r"(^|\.)\d+(?=\.|$)", r"\1*", name), window_of(module)), []).append(module)
    if not by_name:
        raise InputError(
            f"{title}: expected attention that goes through transformers' AttentionInterface, found none: this model "
            "computes its attention itself, so no mask can reach it"
        )
    has_cross = any(_is_cross(name, modules[0]) for (name, _), modules in by_name.items())
    stacks: dict[str, AttentionStack] = {}
    for (name, window), modules in by_name.items():
        mixed = window is not None and (name, None) in by_name
        stack = _stack(title, name, modules, has_cross, window, mixed)
        if stack.site in stacks:
            raise InputError(
                f"{title}: expected one stack of {stack.site} attention, found {stacks[stack.site].name} and {name}, "
                "which a mask cannot tell apart; prune the submodel that holds only one of them"
            )
        stacks[stack.site] = stack
    _check_cross(title, stacks)
    return stacks


@functools.cache
def _asks_interface(module_class: type) -> bool:
    if issubclass(module_class, PreTrainedModel):
        return False
    for base in module_class.__mro__:
        if base is nn.Module:
            return False
        try:
            source = inspect.getsource(base)
        except (OSError, TypeError):  # a class without a file: built in, or made at run time
            continue
        if _INTERFACE_CALL in source:
            return True
    return False


def _is_cross(name: str, module: nn.Module) -> bool:
    within_layer = name.rpartition("*")[2]
    named_so = _CROSS_NAME.search(within_layer) or _CROSS_NAME.search(type(module).__name__)
    return bool(named_so or getattr(module, "is_cross_attention", False))


def window_of(module: nn.Module) -> int | None:
    """The sliding window that an attention module tells its attention function, of its own or its configuration's."""
    if hasattr(module, "sliding_window"):
        return module.sliding_window
    if "sliding_window=" in inspect.getsource(type(module)):
        return getattr(_config(module), "sliding_window", None)
    return None


def is_causal(module: nn.Module) -> bool:
    """Whether an attention module is causal, by the rules of transformers (absent means causal)."""
    return bool(getattr(module, "is_causal", True)) and bool(_of_config(_config(module), "is_causal", True))


def _of_config(config: object, name: str, default: object) -> object:
    """``getattr`` for every call of every layer: a configuration's own takes long to say what it does not have."""
    if config is None or torch.compiler.is_compiling():
        return getattr(config, name, default)
    own = object.__getattribute__(config, "__dict__")
    return own[name] if name in own else getattr(type(config), name, default)


def _config(module: nn.Module) -> object:
    return getattr(module, "config", None)


def _stack(
    title: str, name: str, modules: list[nn.Module], has_cross: bool, window: int | None, mixed: bool
) -> AttentionStack:
    cross = _is_cross(name, modules[0])
    causal = not cross and is_causal(modules[0])
    if any(is_causal(module) != is_causal(modules[0]) for module in modules):
        raise InputError(f"{title}: expected {name} to be all causal or all not, found both")
    heads = {_heads(module) for module in modules}
    if len(heads) != 1 or None in heads:
        raise InputError(f"{title}: expected every layer of {name} to have the same number of heads, found {heads}")
    if cross:
        site = "enc-dec"
    elif has_cross:
        site = "dec-self" if causal else "enc-self"
    else:
        site = "self-local" if mixed else "self"
    return AttentionStack(site, causal, name, tuple(modules), heads.pop(), window)


def _heads(module: nn.Module) -> int | None:
    for owner in (module, _config(module)):
        for name in _HEADS_NAMES:
            if isinstance(found := getattr(owner, name, None), int):
                return found
    return None


def _check_cross(title: str, stacks: dict[str, AttentionStack]) -> None:
    # A cross-attention call carries no position: it takes the one of the self-attention before it in its layer.
    if "enc-dec" not in stacks:
        return
    siblings = stacks["dec-self"].layers if "dec-self" in stacks else 0
    if siblings != stacks["enc-dec"].layers:
        raise InputError(
            f"{title}: expected causal self-attention beside every cross attention {stacks['enc-dec'].name}, found "
            f"{siblings} beside {stacks['enc-dec'].layers}"
        )
