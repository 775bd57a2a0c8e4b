"""Laws of patterns that are collected through forward hooks."""

from __future__ import annotations

import doctest
import sys
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from attention_pruning import AttentionPattern, InputError, collect
from warm_python import spawn

WIDTH, HEADS, LENGTH = 8, 2, 5


class Tiny(nn.Module):
    """Two layers of torch's attention over a sequence or, with ``memory``, over another one."""

    def __init__(self, causal: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.MultiheadAttention(WIDTH, HEADS, 0.5, batch_first=True) for _ in range(2))
        self.causal = causal

    def forward(self, x_BLD, padding=None, memory=None):
        for layer in self.layers:
            source = x_BLD if memory is None else memory
            hidden = torch.ones(x_BLD.shape[1], source.shape[1], dtype=torch.bool).triu(1) if self.causal else None
            out, _ = layer(x_BLD, source, source, key_padding_mask=padding, attn_mask=hidden, need_weights=False)
            x_BLD = x_BLD + out
        return x_BLD


def probabilities(attention, args, kwargs, output):
    return attention.forward(*args, **kwargs | {"need_weights": True, "average_attn_weights": False})[1]


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Tiny()


def hooks_of(model):
    return {f"layers.{layer}": probabilities for layer in range(2)}


def batch_of(real=(5, 3, 1), length=LENGTH, seed=0):
    torch.manual_seed(seed)
    return {
        "x_BLD": torch.randn(len(real), length, WIDTH),
        "padding": torch.arange(length) >= torch.tensor(real)[:, None],
    }


def plain_average(model, batches, name="padding"):
    """Average and count by a plain loop over sequences without their padding."""
    sums, counts = torch.zeros(2, HEADS, LENGTH, LENGTH), torch.zeros(LENGTH, LENGTH)
    model.eval()
    for batch in batches:
        for x_LD, padding in zip(batch["x_BLD"], batch[name], strict=True):
            real = int((~padding).sum())
            x_BLD = x_LD[None, :real]
            for layer, attention in enumerate(model.layers):
                hidden = torch.ones(real, real, dtype=torch.bool).triu(1) if model.causal else None
                out, p_BHQK = attention(x_BLD, x_BLD, x_BLD, attn_mask=hidden, average_attn_weights=False)
                sums[layer, :, :real, :real] += p_BHQK[0].detach()
                x_BLD = x_BLD + out
            counts[:real, :real] += 1
    return sums / counts.clamp(min=1), counts


@pytest.mark.parametrize("causal", [False, True])
def test_a_pattern_is_the_plain_average_without_padding(causal):
    torch.manual_seed(0)
    model, batches = Tiny(causal), [batch_of(), batch_of((2, 5), seed=1)]
    pattern = collect(model, hooks_of(model), batches, causal=causal, key_padding_mask="padding")
    average, count = plain_average(model, batches)
    torch.testing.assert_close(pattern.average, average, atol=1e-6, rtol=0)
    assert torch.equal(pattern.count, (count.tril() if causal else count).long()) and pattern.causal is causal
    assert pattern.metadata == {"model": "Tiny", "sequences": 5, "tokens": 16}


def test_modules_names_and_forms_of_batches_are_the_same(model):
    batch = batch_of((5, 5))
    expected = collect(model, hooks_of(model), [{"x_BLD": batch["x_BLD"]}])
    by_module = {module: probabilities for module in model.layers}
    for batches in ([batch["x_BLD"]], [(batch["x_BLD"],)], [[batch["x_BLD"]]], iter([batch["x_BLD"]])):
        assert collect(model, by_module, batches).fingerprint == expected.fingerprint


def test_padding_may_be_computed_from_the_batch(model):
    batch = batch_of()
    expected = collect(model, hooks_of(model), [batch], key_padding_mask="padding")
    found = collect(model, hooks_of(model), [batch], key_padding_mask=lambda batch: batch["padding"])
    assert found.fingerprint == expected.fingerprint
    whole = collect(model, hooks_of(model), [batch], key_padding_mask=lambda batch: None)
    assert whole.metadata["tokens"] == 15


def test_cross_attention_has_padding_on_both_sides(model):
    batch = batch_of() | {"memory": torch.randn(3, 7, WIDTH)}
    batch["padding"] = torch.arange(7) >= torch.tensor([[7], [2], [4]])
    queries = torch.arange(LENGTH) >= torch.tensor([[5], [3], [1]])
    options = {"site": "enc-dec", "key_padding_mask": "padding"}
    pattern = collect(model, hooks_of(model), [batch], query_padding_mask=lambda batch: queries, **options)
    assert pattern.count.tolist() == ((~queries).long().T @ (~batch["padding"]).long()).tolist()
    assert collect(model, hooks_of(model), [batch], **options).metadata["tokens"] == 15


def test_shorter_batches_and_blocks(model):
    batches = [batch_of((3, 2), 3), batch_of()]
    options = {"key_padding_mask": "padding", "lengths": LENGTH, "block_size": 2}
    pattern = collect(model, hooks_of(model), batches, **options)
    cells = collect(model, hooks_of(model), batches[::-1], key_padding_mask="padding")
    assert pattern.pool == 2 and torch.equal(pattern.count, cells.count)


def test_a_hook_may_look_at_some_calls_only(model):
    seen = []

    def second(attention, args, kwargs, output):
        seen.append(attention)
        return probabilities(attention, args, kwargs, output) if len(seen) > 1 else None

    batch = batch_of()["x_BLD"]
    pattern = collect(model, {"layers.0": second}, [batch, batch])
    assert pattern.metadata["sequences"] == 6 and len(seen) == 4  # nothing, the sizes, and two observations


def test_the_model_is_left_as_it_was(model):
    model.train().layers[1].eval()
    cases = (batch_of()["x_BLD"], nullcontext()), (torch.zeros(1), pytest.raises((RuntimeError, AssertionError)))
    for batch, outcome in cases:
        with outcome:
            collect(model, hooks_of(model), [batch])
        assert [module.training for module in model.layers] == [True, False]
        assert not any(module._forward_hooks for module in model.modules())
    assert collect(model, hooks_of(model), [batch_of()["x_BLD"]]).average.requires_grad is False


@pytest.mark.parametrize(
    ("hooks", "batches", "options", "message"),
    [
        ({}, [], {}, "hooks: expected functions by module or its name, found {}"),
        ({"layers.7": probabilities}, [], {}, "hooks: expected functions by modules of Tiny, found 'layers.7': "),
        ({nn.Linear(1, 1): probabilities}, [], {}, "functions by modules of Tiny, found a Linear that is none"),
        ({"layers.0": 3}, [], {}, "functions by modules of Tiny, found 'layers.0': 3"),
        ({"layers.0": probabilities}, [], {}, "batches: expected at least one in which hooks see probabilities"),
        ({"layers.0": lambda *call: None}, [batch_of()], {}, "batches: expected at least one in which hooks see"),
        ({"layers.0": lambda *call: call[3]}, [batch_of()], {}, "layers.0: expected its hook to give .* found tuple"),
        ({"layers.0": lambda *call: call[3][0]}, [batch_of()], {}, r"layers.0: expected .* found \[3, 5, 8\]"),
        ({"layers.0": probabilities}, [batch_of()], {"lengths": 4}, "at most 4 queries and 4 keys"),
        ({"layers.0": probabilities}, [batch_of()], {"key_padding_mask": "mask"}, r"found \['padding', 'x_BLD'\]"),
        (
            {"layers.0": probabilities},
            [batch_of()],
            {"key_padding_mask": lambda batch: batch["padding"].long()},
            r"key_padding_mask: expected bools \[batch, length\], True = padding, found torch.int64",
        ),
        (
            {"layers.0": probabilities},
            [batch_of()],
            {"key_padding_mask": lambda batch: batch["padding"], "query_padding_mask": lambda batch: torch.ones(1) > 0},
            r"query_padding_mask: expected bools of shape \[3, 5\], found \[1\]",
        ),
        ({"layers.0": probabilities}, [batch_of()], {"causal": True}, "no attention to keys that a query cannot see"),
    ],
)
def test_refusals_in_one_line(model, hooks, batches, options, message):
    with pytest.raises(InputError, match=message) as refusal:
        collect(model, hooks, batches, **options)
    assert "\n" not in str(refusal.value)


def test_the_example_runs():
    assert collect  # the name of the function hides that of its module
    found = doctest.testmod(sys.modules["attention_pruning.collect"])
    assert found.attempted > 5 and found.failed == 0


def _collect_in_process(rank, meeting_point, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = Tiny()
    batches = ([], [batch_of((3, 2), 3), batch_of((3, 1), 3, seed=1)])[rank]
    collect(model, hooks_of(model), batches, key_padding_mask="padding").save(f"{folder}/{rank}.safetensors")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_processes_collect_together(model, tmp_path):
    spawn(_collect_in_process, (str(tmp_path / "meeting"), str(tmp_path)), 2)
    first, second = (AttentionPattern.load(tmp_path / f"{rank}.safetensors") for rank in (0, 1))
    batches = [batch_of((3, 2), 3), batch_of((3, 1), 3, seed=1)]
    expected = collect(model, hooks_of(model), batches, key_padding_mask="padding")
    assert first.fingerprint == second.fingerprint == expected.fingerprint
