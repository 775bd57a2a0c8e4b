"""Laws of the model: it computes what the paper says, leaks nothing of the future, and remembers what it should."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attention_pruning import InputError
from attention_pruning.make import from_pattern
from attention_pruning.ops.relative import RelativeShift
from dropout import dropout
from mem_transformer import MemTransformerLM
from model_config import LATER_FIELDS, ModelConfig
from model_file import load_model, save_model
from naive_xl import naive_hidden
from tiny_xl import LENGTHS, SHAPE, law, random_cells, random_ids, random_pattern, tiny_model

STRUCTURES = {
    "plain": {},
    "pre_lnorm": {"pre_lnorm": True},
    "same_length": {"same_length": True},
    "clamped": {"clamp_len": 3},
    "everything": {"pre_lnorm": True, "same_length": True, "clamp_len": 2},
    "no memory": {"mem_len": 0},
    "untied biases": {"untie_r": True},
}
every_structure = pytest.mark.parametrize("structure", STRUCTURES.values(), ids=STRUCTURES.keys())
dense_and_pruned = pytest.mark.parametrize("share", [None, 0.5, 0.9], ids=["dense", "pruned", "nearly empty"])


def build(structure, share=None, dtype=torch.float64):
    model = tiny_model(**structure).to(dtype)
    if share is not None:
        model.set_pruned(random_cells(model, share))
    return model


def segments_of(ids, lengths):
    return ids.split(lengths, dim=1)


def walk(model, segments, grad=False):
    """Log-probabilities [B, T, V] of consecutive segments: from remembered hidden states, or from keys and values."""
    memory, found = None, []
    with torch.set_grad_enabled(grad):
        for segment in segments:
            log_probs, memory = model.log_probabilities(segment, memory)
            found.append(log_probs.detach())
    return torch.cat(found, 1)


# -- relative positions ----------------------------------------------------------------------------------------------


@law
@given(st.integers(1, 7), st.integers(0, 6), st.integers(1, 3), st.integers(0, 2**32 - 1))
def test_relative_shift_gathers_scores_by_distance(queries, memory, batch, seed):
    """Cell (i, j) is the score at distance M + i - j; the cells of the future are masked, so they get no gradient."""
    keys = memory + queries
    generator = torch.Generator().manual_seed(seed)
    by_distance = torch.randn(batch, queries, keys, generator=generator, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(batch, queries, keys, generator=generator, dtype=torch.float64)
    found = RelativeShift.apply(by_distance)
    expected = torch.zeros(batch, queries, keys, dtype=torch.float64)
    gradient = torch.zeros_like(expected)
    seen = torch.ones(queries, keys, dtype=torch.bool).tril(memory)
    for i, j in seen.nonzero().tolist():
        column = keys - 1 - (memory + i - j)  # columns run from distance K - 1 down to 0
        expected[:, i, j] = by_distance.detach()[:, i, column]
        gradient[:, i, column] += weight[:, i, j]
    assert torch.equal(found.detach() * seen, expected)
    (found * weight * seen).sum().backward()
    assert torch.equal(by_distance.grad, gradient)


# -- the model against loops -------------------------------------------------------------------------------------------


@every_structure
@dense_and_pruned
@pytest.mark.parametrize("remembered", ["hidden states", "keys and values"])
def test_equals_the_paper_in_loops(structure, share, remembered):
    """Over a memory that fills up and then slides; the third segment is short. Frequencies are float32 in the model."""
    model, ids = build(structure, share), random_ids(2, 15)
    memories, memory = [None] * 2, None
    with torch.set_grad_enabled(remembered == "hidden states"):
        for segment in segments_of(ids, [4, 4, 3, 4]):
            found, memory = model.hidden(segment, memory)
            for row in range(2):
                expected, memories[row], _ = naive_hidden(model, segment[row], memories[row])
                torch.testing.assert_close(found[row], expected, atol=1e-6, rtol=0)
    assert memory.length == min(15, model.config.mem_len)


@every_structure
@dense_and_pruned
def test_gradients_equal_those_of_the_loops(structure, share):
    model, memory, memories = build(structure, share).train(), None, None
    for segment in segments_of(random_ids(1, 12), 4):
        found, memory = model.hidden(segment, memory)
        expected, memories, _ = naive_hidden(model, segment[0], memories)
    weight = torch.linspace(0, 5, found.numel(), dtype=torch.float64).view(found.shape).cos()
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if not n.startswith("crit")), strict=True)
    pairs = (
        torch.autograd.grad((x * weight).sum(), parameters, materialize_grads=True) for x in (found, expected[None])
    )
    for name, one, other in zip(names, *pairs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_a_mask_is_what_makes_the_difference():
    """The tests above would not notice a pruned model that ignores its mask and a dense loop: this one does."""
    model, ids = build({}), random_ids(2, 4)
    dense = walk(model, [ids])
    model.set_pruned(random_cells(model))  # after a forward pass: nothing of the dense masks may remain
    assert not torch.allclose(dense, walk(model, [ids]))
    model.set_pruned(None)
    assert torch.equal(dense, walk(model, [ids]))


# -- what the future and the memory may do -----------------------------------------------------------------------------


@every_structure
@dense_and_pruned
@pytest.mark.parametrize("grad", [True, False], ids=["hidden states", "keys and values"])
def test_the_future_does_not_leak(structure, share, grad):
    """Changing token t changes no logit before t and no attention row of an earlier position."""
    model, ids = build(structure, share, torch.float32), random_ids(2, 12)

    def observed(text):
        rows = []  # of every segment, every layer
        for layer in model.layers:
            layer.dec_attn.observer = rows.append
        return walk(model, segments_of(text, 4), grad), rows

    before, rows_before = observed(ids)
    for t in (1, 4, 6, 11):
        changed = ids.clone()
        changed[:, t] = (changed[:, t] + 5) % 23
        after, rows_after = observed(changed)
        assert torch.equal(before[:, :t], after[:, :t])
        assert not torch.equal(before[:, t], after[:, t])
        for number, (one, other) in enumerate(zip(rows_before, rows_after, strict=True)):
            earlier = max(0, min(4, t - 4 * (number // model.config.n_layer)))  # rows of this segment that precede t
            assert torch.equal(one[:, :, :earlier], other[:, :, :earlier])


@every_structure
@dense_and_pruned
def test_a_segment_cut_short_gives_its_tokens_the_same_logits(structure, share):
    model, ids = build(structure, share), random_ids(2, 12)
    full = walk(model, segments_of(ids, 4))
    for length in (1, 2, 3):
        short = walk(model, segments_of(ids[:, : 8 + length], 4))
        torch.testing.assert_close(short, full[:, : 8 + length], atol=1e-12, rtol=0)


@pytest.mark.parametrize("structure", [{}, {"pre_lnorm": True}, {"clamp_len": 3}])
@pytest.mark.parametrize("grad", [True, False], ids=["hidden states", "keys and values"])
@pytest.mark.parametrize("length", [1, 3, 5])
def test_segments_do_not_matter_when_memory_holds_everything(structure, grad, length):
    model, ids = build({**structure, "tgt_len": 12, "mem_len": 12}), random_ids(2, 12)
    expected, _ = model.log_probabilities(ids)
    torch.testing.assert_close(walk(model, segments_of(ids, length), grad), expected, atol=1e-10, rtol=0)


@every_structure
@dense_and_pruned
def test_keys_and_values_remember_what_hidden_states_do(structure, share):
    model, segments = build(structure, share), segments_of(random_ids(3, 22), 4)
    torch.testing.assert_close(walk(model, segments, True), walk(model, segments, False), atol=1e-12, rtol=0)


@pytest.mark.parametrize("structure", [{}, {"pre_lnorm": True}])
def test_remembered_hidden_states_serve_an_evaluation(structure):
    """A memory made with gradients continues without them."""
    model, ids = build(structure, 0.5), random_ids(2, 12)
    _, memory = model.log_probabilities(ids[:, :8][:, :4])
    with torch.no_grad():
        found, _ = model.log_probabilities(ids[:, 4:8], memory)
    torch.testing.assert_close(found, walk(model, segments_of(ids[:, :8], 4))[:, 4:], atol=1e-12, rtol=0)


@pytest.mark.parametrize("structure", [{}, {"pre_lnorm": True}])
def test_an_evaluation_continues_with_gradients(structure):
    """A memory of keys and values made without gradients, as when somebody asks what a loss depends on."""
    model, ids = build(structure, 0.5), random_ids(2, 13)
    expected = walk(model, segments_of(ids[:, :12], 4))
    with torch.no_grad():
        _, memory = model.log_probabilities(ids[:, :4])
    for start in (4, 8):
        found, memory = model.log_probabilities(ids[:, start : start + 4], memory)
        torch.testing.assert_close(found, expected[:, start : start + 4], atol=1e-12, rtol=0)
    found.sum().backward()
    assert model.r_w_bias.grad is not None and torch.isfinite(model.r_w_bias.grad).all()
    assert not any(x.requires_grad for pair in memory.keys_values for x in pair)


@pytest.mark.parametrize("tgt_len, mem_len", [(4, 6), (2, 6), (4, 3), (1, 1), (3, 0)])
def test_a_pruned_model_at_shorter_lengths_uses_the_same_cells(tgt_len, mem_len, tmp_path):
    """Rows from the start of the segment, memory slots from the last one back."""
    model = build({}, 0.5, torch.float32)
    save_model(tmp_path / "model.safetensors", model)
    loaded = load_model(tmp_path / "model.safetensors", tgt_len=tgt_len, mem_len=mem_len).model.double()
    cells = loaded.pruned_cells()
    assert torch.equal(cells, model.pruned[:, :, :tgt_len, 6 - mem_len : 6 + tgt_len])
    expected = build({"tgt_len": tgt_len, "mem_len": mem_len})
    expected.set_pruned(cells)
    segments = segments_of(random_ids(2, 13), tgt_len)
    torch.testing.assert_close(walk(loaded, segments), walk(expected, segments), atol=1e-5, rtol=0)


@pytest.mark.parametrize("length, memory_length", [(5, 0), (5, 6)])
def test_a_pruned_model_refuses_longer_segments_than_its_mask(length, memory_length):
    model = build({}, 0.5, torch.float32)
    _, memory = model.hidden(random_ids(1, 4)) if memory_length == 0 else (None, None)
    with pytest.raises(InputError, match="covers segments of 4 tokens after 6 memory slots, found a segment of 5"):
        model.hidden(random_ids(1, length), memory)


# -- embedding and softmax ---------------------------------------------------------------------------------------------


@law
@given(
    st.lists(st.integers(1, 22), max_size=3, unique=True).map(sorted),
    st.sampled_from([1, 2]),
    st.booleans(),
    st.sampled_from([16, 8]),
)
def test_the_loss_is_that_of_a_normalised_distribution(cutoffs, div_val, tied, d_embed):
    model = tiny_model(cutoffs=cutoffs, div_val=div_val, tied=tied, d_embed=d_embed, d_model=16).double()
    ids = random_ids(2, 4)
    target = random_ids(2, 4, seed=5)
    log_probs, _ = model.log_probabilities(ids)
    nll, _ = model(ids, target)
    torch.testing.assert_close(log_probs.exp().sum(-1), torch.ones(2, 4, dtype=log_probs.dtype), atol=1e-5, rtol=0)
    torch.testing.assert_close(nll, -log_probs.gather(-1, target[..., None]).squeeze(-1), atol=1e-5, rtol=1e-5)


def test_every_weight_has_a_gradient_whatever_the_tokens():
    """Clusters that a batch does not touch, too: processes of one training must agree on what there is to average."""
    model = tiny_model(cutoffs=[5, 10, 15], div_val=2, tied=False).train()
    ids = torch.zeros(1, 4, dtype=torch.int64)
    model(ids, ids, None)[0].sum().backward()
    without = [name for name, p in model.named_parameters() if p.grad is None]
    assert not without


@pytest.mark.parametrize("cutoffs", [[5, 5], [10, 5], [23], [0, 4], [-1]])
def test_wrong_cutoffs_are_refused(cutoffs):
    with pytest.raises(InputError, match="cutoffs.*23.*found"):
        tiny_model(cutoffs=cutoffs)


def test_an_embedding_that_div_val_uses_up_is_refused():
    with pytest.raises(InputError, match="div_val: 4 .* d_embed 16 .* cluster 3"):
        tiny_model(cutoffs=[4, 8, 12], div_val=4)


@pytest.mark.parametrize("init", ["normal", "uniform"])
@pytest.mark.parametrize(
    "changes", [{}, {"cutoffs": [5, 9], "div_val": 2}, {"tied": False, "cutoffs": [5], "d_embed": 8}]
)
def test_no_weight_is_left_as_memory_was(init, changes):
    model = MemTransformerLM(ModelConfig(n_token=23, **{**SHAPE, **LENGTHS, **changes}))
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(float("nan"))
    model.initialize(init)
    assert not [name for name, weight in model.named_parameters() if weight.isnan().any()]


# -- size, configuration, file -----------------------------------------------------------------------------------------


def test_the_wt103_base_configuration_has_the_published_size():
    """151,107,538 parameters, 41,066,400 of them in the layers: what the authors' code counts for its base model."""
    config = ModelConfig(
        n_token=267735,
        n_layer=16,
        n_head=10,
        d_head=41,
        d_model=410,
        d_inner=2100,
        dropout=0.1,
        cutoffs=[20000, 40000, 200000],
        tgt_len=150,
        mem_len=150,
    )
    with torch.device("meta"):
        model = MemTransformerLM(config)
    assert sum(p.numel() for p in model.parameters()) == 151_107_538
    assert sum(p.numel() for p in model.layers.parameters()) == 41_066_400


@pytest.mark.parametrize(
    "change",
    [
        {"n_layer": 0},
        {"d_model": 15},
        {"mem_len": -1},
        {"tgt_len": 0},
        {"same_length": True, "mem_len": 0},
        {"div_val": 0},
    ],
)
def test_a_model_that_cannot_be_is_refused(change):
    with pytest.raises(InputError, match=f"--{next(iter(change))}.*found"):
        tiny_model(**change)


def test_a_configuration_survives_its_file():
    config = ModelConfig(n_token=23, cutoffs=[3, 9], same_length=True, mem_len=4)
    assert ModelConfig.from_json(config.to_json()) == config
    fields = dataclasses.asdict(config)
    first = {name: value for name, value in fields.items() if name not in LATER_FIELDS}
    assert ModelConfig.from_json(json.dumps(first)) == config
    for broken in ({**fields, "n_experts": 4}, {k: v for k, v in fields.items() if k != "n_token"}):
        with pytest.raises(InputError, match="n_token"):
            ModelConfig.from_json(json.dumps(broken))


@dense_and_pruned
def test_a_model_survives_its_file(share, tmp_path):
    model, segments = build({"cutoffs": [4, 9]}, share, torch.float32), segments_of(random_ids(2, 11), 4)
    save_model(tmp_path / "model.safetensors", model, step=7, corpus="c", vocabulary="v", mask=None)
    loaded = load_model(tmp_path / "model.safetensors")
    assert loaded.info == {"step": 7, "corpus": "c", "vocabulary": "v", "mask": None}
    assert loaded.model.config == model.config
    assert torch.equal(walk(loaded.model, segments), walk(model, segments))
    with torch.no_grad():
        model.r_w_bias[0, 0] += 1e-6
    save_model(tmp_path / "other.safetensors", model)
    assert load_model(tmp_path / "other.safetensors").fingerprint != loaded.fingerprint


@pytest.mark.parametrize(
    "lengths", [{"tgt_len": 5}, {"mem_len": 7}, {"tgt_len": 3, "mem_len": 7}, {"tgt_len": 5, "mem_len": 1}]
)
def test_a_pruned_model_is_not_loaded_beyond_the_lengths_of_its_mask(lengths, tmp_path):
    path = tmp_path / "model.safetensors"
    save_model(path, build({}, 0.5, torch.float32))
    found = {"tgt_len": 4, "mem_len": 6, **lengths}
    with pytest.raises(InputError) as caught:
        load_model(path, **lengths)
    assert str(caught.value).startswith(str(path))
    assert "covers tgt_len 4 and mem_len 6" in str(caught.value)
    assert f"found --tgt_len {found['tgt_len']} --mem_len {found['mem_len']}" in str(caught.value)


@pytest.mark.parametrize(
    "changes, name",
    [({"n_layer": 3}, "layers"), ({"n_head": 3}, "heads"), ({"tgt_len": 5, "mem_len": 5}, "query_length")],
)
def test_a_mask_for_another_model_is_refused(changes, name):
    mask = from_pattern(random_pattern(**changes), 0.5)
    config = ModelConfig(n_token=23, **SHAPE, **LENGTHS)
    expected, found = ({**SHAPE, **LENGTHS, **c} for c in ({}, changes))
    key = {"layers": "n_layer", "heads": "n_head", "query_length": "tgt_len"}[name]
    with pytest.raises(InputError, match=f"expected {name} {expected[key]}.*found {found[key]}"):
        MemTransformerLM(config, mask)


def test_a_mask_that_prunes_nothing_leaves_the_model_dense():
    mask = from_pattern(random_pattern(), 0.0)
    assert MemTransformerLM(ModelConfig(n_token=23, **SHAPE, **LENGTHS), mask).pruned is None
    # a quarter of this pattern is the future: the published rule spends a small tau on it
    mask = from_pattern(random_pattern(), 0.1, crop=False)
    assert mask.effective_sparsity == 0.0
    assert MemTransformerLM(ModelConfig(n_token=23, **SHAPE, **LENGTHS), mask).pruned is None


# -- dropout -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(300, 401), (1,), (3, 1, 5)])
def test_dropout_drops_its_share_and_keeps_the_mean(p, shape):
    torch.manual_seed(1)
    x = torch.full(shape, 2.0, dtype=torch.float64, requires_grad=True)
    draws = torch.stack([dropout(x, p, True) for _ in range(1 + 3_000 // x.numel())])
    alive = draws != 0
    torch.testing.assert_close(draws[alive], torch.full_like(draws[alive], 2 / (1 - p)), rtol=1e-3, atol=0)
    deviation = (p * (1 - p) / draws.numel()) ** 0.5
    assert abs(1 - alive.double().mean() - p) < 5 * deviation + 2**-16
    (gradient,) = torch.autograd.grad(draws.sum(), x)
    torch.testing.assert_close(gradient, (draws.detach() / 2).sum(0))  # what was dropped passes no gradient


def test_a_training_remembers_a_byte_of_each_number_that_dropout_saw():
    """On attention, too: floats would be four times the memory of its probabilities."""
    model, ids = tiny_model(dropout=0.3, dropatt=0.3).train(), random_ids(2, 5)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        model(ids[:, :-1], ids[:, 1:])
    probabilities = [x for x in saved if list(x.shape) == [2, 2, 4, 4]]
    kept = [x for x in probabilities if x.dtype == torch.bool]
    assert len(kept) == SHAPE["n_layer"]
    assert all(set(x.unique().tolist()) <= {False, True} for x in kept)


def test_dropout_follows_the_seed_and_leaves_evaluation_alone():
    x = torch.randn(50)
    torch.manual_seed(1)
    first = dropout(x, 0.5, True)
    torch.manual_seed(1)
    assert torch.equal(dropout(x, 0.5, True), first)
    assert not torch.equal(dropout(x, 0.5, True), first)
    assert dropout(x, 0.5, False) is x and dropout(x, 0.0, True) is x
