"""The shape of a Transformer-XL: what its file carries beside the weights."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from attention_pruning import InputError
from reproduction.runs.json_file import parse_json

#: What every number of a shape stays below.
_LARGEST = 1 << 31
#: Fields that the first model files do not have.
LATER_FIELDS = {"untie_r", "tie_projs"}


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the model; the fields are the flags of ``train.py``."""

    n_token: int
    n_layer: int = 12
    n_head: int = 10
    d_head: int = 50
    d_embed: int = -1
    d_model: int = 500
    d_inner: int = 1000
    dropout: float = 0.0
    dropatt: float = 0.0
    tied: bool = True
    cutoffs: list[int] = field(default_factory=list)
    div_val: int = 1
    pre_lnorm: bool = False
    tgt_len: int = 70
    mem_len: int = 0
    same_length: bool = False
    clamp_len: int = -1
    untie_r: bool = False
    tie_projs: list[bool] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("n_token", "n_layer", "n_head", "d_head", "d_model", "d_inner", "div_val", "tgt_len"):
            if not 1 <= getattr(self, name) < _LARGEST:
                raise InputError(f"--{name}: expected a number of at least 1, found {getattr(self, name)}")
        if not 0 <= self.mem_len < _LARGEST:
            raise InputError(f"--mem_len: expected 0 or more, found {self.mem_len}")
        if self.d_model % 2:
            raise InputError(f"--d_model: expected an even number (sine and cosine pairs), found {self.d_model}")
        if self.same_length and self.mem_len == 0:
            raise InputError(
                "--same_length: every query sees exactly mem_len keys, so --mem_len must be at least 1, found 0"
            )
        if self.d_embed < 1:
            object.__setattr__(self, "d_embed", self.d_model)
        if not self.tie_projs:  # as in the published base models
            object.__setattr__(self, "tie_projs", [False] + [True] * len(self.cutoffs))
        if len(self.tie_projs) != len(self.cutoffs) + 1:
            raise InputError(
                f"tie_projs: expected a value for each of {len(self.cutoffs) + 1} clusters, found {self.tie_projs}"
            )

    @classmethod
    def from_json(cls, text: str) -> ModelConfig:
        """Rebuild from :meth:`to_json`; unknown or missing fields, or values of other types, are an InputError."""
        values, expected = (
            parse_json(text, "model configuration: expected JSON"),
            {f.name for f in dataclasses.fields(cls)},
        )
        if not isinstance(values, dict) or set(values) | LATER_FIELDS != expected:
            raise InputError(f"model configuration: expected the fields {sorted(expected)}, found {values}")
        return cls.of(values)

    @classmethod
    def of(cls, values: Mapping[str, object]) -> ModelConfig:
        """A configuration of values that a file holds by the names of its fields.

        Raises
        ------
        InputError
            If one has another type, or makes no sense.
        """
        for entry in dataclasses.fields(cls):
            if entry.name in values and not _is_of(entry.type, values[entry.name]):
                found = values[entry.name]
                raise InputError(f"model configuration: expected {entry.name} of type {entry.type}, found {found!r}")
        return cls(**values)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)


def _is_of(kind: str, value: object) -> bool:
    """Whether a value has the type that the annotation of a field names."""
    if kind.startswith("list["):
        return isinstance(value, list) and all(_is_of(kind[5:-1], one) for one in value)
    if kind == "float":
        return _is_of("int", value) or (isinstance(value, float) and math.isfinite(value))
    return type(value) is {"int": int, "bool": bool}[kind]
