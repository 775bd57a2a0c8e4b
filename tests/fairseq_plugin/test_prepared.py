"""What masks need is found once, and without a wait for a GPU."""

import math

import pytest
import torch
from fairseq.modules import MultiheadAttention

from attention_pruning.structure import visible_cells
from plugin import prepared
from plugin.attention import PrunedAttention
from plugin.model import adopt_attention
from test_pruned_attention import SITES, step_by_step
from tiny_translation import HEADS, LAYERS, batch_of, build, prune_flags


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("site", SITES)
def test_nothing_waits_for_a_device(site, training):
    """On the device "meta" a tensor has no values: whoever looks at one fails."""
    torch.manual_seed(0)
    kind = "encoder_decoder_attention" if site == "enc-dec" else "self_attention"
    attention = PrunedAttention.adopt(MultiheadAttention(8, HEADS, dropout=0.1, **{kind: True}), site)
    pruned = torch.rand(HEADS, 6, 6) < 0.5
    attention.register_buffer("prune_mask", pruned)
    mask = attention.layer_mask  # made when the mask comes to the device
    attention = attention.to("meta").train(training)
    attention._layer_mask = (attention.prune_mask, attention.prune_mask._version, mask)
    attention._padding_checked = True  # the first batch alone is looked at
    query = torch.randn(5, 3, 8, device="meta", requires_grad=True)
    future = None
    if site == "dec-self":
        future = torch.zeros(5, 5, device="meta")
        prepared._verified(future)[future.shape, future.stride(), 0] = True  # each length is looked at once
    padding = torch.zeros(3, 5, dtype=torch.bool, device="meta")
    for weights in (False, True):
        output, _ = attention(
            query,
            query,
            query,
            key_padding_mask=padding,
            attn_mask=future,
            need_weights=weights,
            need_head_weights=weights,
        )
        output.sum().backward()


def test_all_layers_and_all_steps_share_what_is_known_of_the_padding(task, pattern_files, monkeypatch):
    looked, init = [], prepared.Padding.__init__
    monkeypatch.setattr(prepared.Padding, "__init__", lambda self, mask: looked.append(mask.shape) or init(self, mask))
    model = build(task, **prune_flags(pattern_files, ("enc-self", "enc-dec")))
    net_input = batch_of(task, range(12))["net_input"]
    with torch.no_grad():
        model(**net_input)
        assert len(looked) == 1, looked
        looked.clear()
        step_by_step(model, net_input)
    assert len(looked) == 1 + LAYERS and net_input["prev_output_tokens"].size(1) > 4


def test_a_decoder_mask_is_verified_once_for_each_length(monkeypatch):
    whole = torch.full((8, 8), -math.inf).triu(1)
    calls, equal = [], torch.equal
    monkeypatch.setattr(torch, "equal", lambda a, b: calls.append(1) or equal(a, b))
    for _ in range(3):
        assert prepared.hides_only_the_future(whole[:5, :5]) and prepared.hides_only_the_future(whole[:3, :3])
    assert len(calls) == 2
    assert not prepared.hides_only_the_future(whole[1:5, :4])
    whole[4, 0] = -math.inf
    assert not prepared.hides_only_the_future(whole[:5, :5]), "it has changed"
    assert prepared.hides_only_the_future(whole[:3, :3])


def test_a_mask_that_is_longer_is_the_same_and_prunes_nothing_beyond(task, pattern_files):
    model = build(task, **prune_flags(pattern_files, SITES))
    for site, modules in adopt_attention(model).items():
        mask = modules[LAYERS - 1].layer_mask
        longer = prepared.extended(mask, 70, 13)
        assert longer is prepared.extended(mask, 65, 20), "made once for as many lengths as share it"
        cells = longer.cells(torch.device("cpu"))
        assert torch.equal(cells[:, : mask.query_length, : mask.key_length], mask.cells(torch.device("cpu")))
        assert cells.sum() == mask.cells(torch.device("cpu")).sum()
        hidden = longer.additive(torch.device("cpu"), torch.float32) == -math.inf
        future = ~visible_cells(*cells.shape[1:], site == "dec-self")
        assert torch.equal(hidden, cells | future)
