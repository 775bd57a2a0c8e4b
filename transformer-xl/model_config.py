"""The shape of a Transformer-XL: what its file carries beside the weights."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field

from attention_pruning import InputError

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
            if getattr(self, name) < 1:
                raise InputError(f"--{name}: expected a number of at least 1, found {getattr(self, name)}")
        if self.mem_len < 0:
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
        """Rebuild from :meth:`to_json`; unknown or missing fields are an InputError."""
        values, expected = json.loads(text), {f.name for f in dataclasses.fields(cls)}
        if set(values) | LATER_FIELDS != expected:
            raise InputError(f"model configuration: expected the fields {sorted(expected)}, found {sorted(values)}")
        return cls(**values)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self), sort_keys=True)
