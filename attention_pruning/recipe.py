"""How a prune mask is asked for: MaskRecipe, one value that flags, files and records share."""

from __future__ import annotations

import dataclasses
import math
from decimal import Decimal

from .errors import InputError
from .structure import require_block_size

RULES = ("published", "allowed")
SCOPES = ("layer", "head", "row", "model")
ROW_FLOORS = ("keep-best", "none")
UNOBSERVED = ("keep", "prune")
#: What the header of a mask's file, and every record of a mask, says of its recipe, in this order.
RECORDED = ("tau", "rule", "scope", "row_floor", "block_size")


@dataclasses.dataclass(frozen=True)
class MaskRecipe:
    """How a mask is made from a pattern, or how one was made. What is None is left open.

    A flag that was not given leaves its field open: a mask file then decides, and a pattern takes the default
    (:meth:`closed`). The terms are those of docs/method.md.

    Parameters
    ----------
    tau : float or str, optional
        The share to prune, a fraction in [0, 1] (kept as float). 0 prunes nothing, under either rule. Has no default.
    rule : {"published", "allowed"}
        "allowed": of every group exactly floor(tau * allowed blocks), lowest average first, ties in flat index order.
        "published" (the default): of every group the blocks not above the 100 * tau percentile (nearest) of all its
        blocks, which includes those that no query can see, whose average is 0.
    scope : {"layer", "head", "row", "model"}
        What a group is, by default a layer.
    block_size : int
        The side of the square blocks that are pruned whole, by default 1: single cells.
    row_floor : {"keep-best", "none"}
        Whether a row that would lose all its allowed cells gets its best block back, as it does by default.
    crop : bool
        Rule "published": take the percentile within the bounding box of the observed blocks (the default), or of the
        whole array, as published for Transformer-XL.
    unobserved : {"keep", "prune"}
        What happens to blocks that are visible in part but hold no observed cell, by default "keep".

    Raises
    ------
    InputError
        For a tau outside [0, 1], a block size that is no whole number of at least 1, or an unknown choice.
    """

    tau: float | None = None
    rule: str | None = None
    scope: str | None = None
    block_size: int | None = None
    row_floor: str | None = None
    crop: bool | None = None
    unobserved: str | None = None

    def __post_init__(self) -> None:
        if self.tau is not None:
            object.__setattr__(self, "tau", parse_tau(self.tau))
        choices = (
            ("rule", RULES),
            ("scope", SCOPES),
            ("row_floor", ROW_FLOORS),
            ("unobserved", UNOBSERVED),
        )
        for name, allowed in choices:
            if getattr(self, name) is not None:
                require_choice(name, getattr(self, name), allowed)
        if self.block_size is not None:
            require_block_size(self.block_size)
        if self.crop is not None and not isinstance(self.crop, bool):
            raise InputError(f"crop: expected true or false, found {self.crop!r}")

    @classmethod
    def of(cls, recipe: MaskRecipe | float | str | None = None, **fields: object) -> MaskRecipe:
        """What a function was asked for: a recipe or a tau alone, changed by the fields that were named beside it."""
        if isinstance(recipe, MaskRecipe):
            return dataclasses.replace(recipe, **fields)
        return cls(**fields) if recipe is None else cls(recipe, **fields)

    def closed(self, block_size: int = 1) -> MaskRecipe:
        """The same recipe with the default for everything that is left open.

        Raises
        ------
        InputError
            If its tau is left open.
        """
        parse_tau(self.tau)
        defaults = {
            "rule": "published",
            "scope": "layer",
            "block_size": block_size,
            "row_floor": "keep-best",
            "crop": True,
            "unobserved": "keep",
        }
        opened = {name: value for name, value in defaults.items() if getattr(self, name) is None}
        return dataclasses.replace(self, **opened)

    def recorded(self) -> dict[str, float | str | int | None]:
        """The fields that headers and records name, those of `RECORDED`."""
        return {name: getattr(self, name) for name in RECORDED}


def parse_tau(value: float | str) -> float:
    """The share to prune as a fraction in [0, 1], from a number or its spelling.

    Raises
    ------
    InputError
        For anything else. A percentage is refused with the fraction that was probably meant.
    """
    text = " ".join(str(value).split())
    try:
        number = float(text.rstrip("%"))
    except ValueError:
        number = math.nan
    if 0 <= number <= 1 and "%" not in text:
        return number + 0.0  # -0.0 becomes 0.0
    hint = "such as 0.9 for 90 percent"
    if 0 <= number <= 100:
        percent = text.rstrip("%").strip()
        hint = f"for {percent} percent write {Decimal(percent).scaleb(-2).normalize():f}"
    raise InputError(f"tau: expected a fraction between 0 and 1, found {text!r}; {hint}")


def require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Refuse, with InputError, a value that is not among the choices."""
    if not isinstance(value, str) or value not in choices:
        raise InputError(f"{name}: expected one of {', '.join(choices)}, found {value!r}")
