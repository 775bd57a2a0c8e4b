"""Our model against ``TransfoXLLMHeadModel`` of transformers 4.35.2 on the same weights (tests/golden/README.md)."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from mem_transformer import MemTransformerLM, ModelConfig
from weight_layouts import from_layout

FIXTURE = Path(__file__).parents[1] / "golden" / "transfo_xl.safetensors"
with safe_open(FIXTURE, framework="pt") as _file:
    CASES = json.loads(_file.metadata()["config"])["cases"]
    TENSORS = {name: _file.get_tensor(name) for name in _file.keys()}  # noqa: SIM118 (not a mapping)

SHAPE = ("n_token", "n_layer", "n_head", "d_head", "d_embed", "d_model", "d_inner", "cutoffs", "div_val", "pre_lnorm")
SHARED, LENGTHS = (*SHAPE, "tie_projs"), ("mem_len", "same_length", "clamp_len")


def build(case: str) -> MemTransformerLM:
    """Our model with the oracle's weights."""
    values = CASES[case]
    config = ModelConfig(tgt_len=max(values["segments"]), **{k: values[k] for k in SHARED + LENGTHS})
    model = MemTransformerLM(config).eval()
    prefix = f"{case}/weights/"
    oracle = {name.removeprefix(prefix): tensor for name, tensor in TENSORS.items() if name.startswith(prefix)}
    weights = from_layout(oracle, config, "transformers")
    model.load_state_dict(weights)  # strict: every weight of the oracle has its place, and none of ours is left over
    return model


@pytest.mark.parametrize("remembered", ["hidden states", "keys and values"])
@pytest.mark.parametrize("case", CASES)
def test_equals_the_oracle_over_three_segments(case, remembered):
    model = build(case)
    seen = {}
    for index, layer in enumerate(model.layers):
        layer.dec_attn.observer = lambda p, index=index: seen.__setitem__(index, p)
    memory = memory_again = None
    with torch.set_grad_enabled(remembered == "hidden states"):
        for segment in range(3):
            expected = {
                k: TENSORS[f"{case}/segment{segment}/{k}"] for k in ("data", "target", "log_probs", "nll", "attention")
            }
            log_probs, memory = model.log_probabilities(expected["data"], memory)
            torch.testing.assert_close(log_probs, expected["log_probs"], atol=1e-4, rtol=0)
            torch.testing.assert_close(
                torch.stack([seen[i] for i in range(len(seen))]), expected["attention"], atol=1e-5, rtol=0
            )
            nll, memory_again = model(expected["data"], expected["target"], memory_again)
            torch.testing.assert_close(nll, expected["nll"], atol=1e-4, rtol=0)
    assert (memory.states is None) == (remembered == "keys and values")


@pytest.mark.parametrize("case", CASES)
def test_fused_attention_equals_the_oracle(case):
    """Without an observer an evaluation takes SDPA."""
    model, memory = build(case), None
    with torch.no_grad():
        for segment in range(3):
            data, expected = (TENSORS[f"{case}/segment{segment}/{k}"] for k in ("data", "log_probs"))
            log_probs, memory = model.log_probabilities(data, memory)
            torch.testing.assert_close(log_probs, expected, atol=1e-4, rtol=0)
