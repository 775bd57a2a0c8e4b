"""Laws of the pruned attention inside fairseq's transformer."""

import math

import pytest
import torch
from fairseq.models.transformer import TransformerModel
from fairseq.sequence_generator import SequenceGenerator
from hypothesis import given, settings
from hypothesis import strategies as st

from attention_pruning import AttentionPattern, InputError
from attention_pruning.make import from_pattern
from plugin.attention import PrunedAttention
from plugin.model import adopt_attention
from tiny_translation import HEADS, LAYERS, batch_of, build, prune_flags

SITES = ("enc-self", "dec-self", "enc-dec")
SITE_SETS = [*((site,) for site in SITES), SITES]
PAD = 1


def seen_probabilities(model, net_input):
    """What every attention computed in a full forward pass: (site, layer) -> [B, H, T, S], and the output."""
    seen = {}
    for site, modules in adopt_attention(model).items():
        for layer, module in enumerate(modules):
            module.observer = lambda p, key=(site, layer): seen.__setitem__(key, p)
    with torch.no_grad():
        output = model(**net_input)[0]
    for modules in adopt_attention(model).values():
        for module in modules:
            module.observer = None
    return seen, output


def real_tokens(net_input, site):
    source, target = net_input["src_tokens"].ne(PAD), net_input["prev_output_tokens"].ne(PAD)
    return (source if site == "enc-self" else target), (target if site == "dec-self" else source)


def visible_cells(net_input, site):
    """bool [B, T, S]: real queries and the real keys that they see."""
    queries, keys = real_tokens(net_input, site)
    visible = queries[:, :, None] & keys[:, None, :]
    return visible.tril() if site == "dec-self" else visible


@pytest.mark.parametrize("entmax", [False, True])
@pytest.mark.parametrize("row_floor", ["keep-best", "none"])
def test_pruned_cells_get_nothing_and_rows_without_a_kept_key_are_uniform(
    task, pattern_files, tmp_path, entmax, row_floor
):
    files, masks = {}, {}
    for site in SITES:
        pattern = AttentionPattern.load(pattern_files[site])
        masks[site] = from_pattern(pattern, 0.8, rule="allowed", row_floor=row_floor)
        files[site] = tmp_path / f"{site}.safetensors"
        masks[site].save(files[site])
    flags = prune_flags(files, SITES, USE_ENTMAX=entmax)
    del flags["TAU"], flags["rule"]
    model = build(task, **flags)
    net_input = batch_of(task, range(12))["net_input"]
    seen, _ = seen_probabilities(model, net_input)
    assert len(seen) == len(SITES) * LAYERS
    uniform_rows = 0
    for (site, layer), p_BHTS in seen.items():
        visible = visible_cells(net_input, site)[:, None].expand_as(p_BHTS)
        kept = visible & ~masks[site].cells(layer)[None, :, : p_BHTS.size(2), : p_BHTS.size(3)]
        has_kept, has_visible = kept.any(-1), visible.any(-1)
        assert torch.all(p_BHTS[(~kept) & has_kept[..., None]] == 0)
        empty = has_visible & ~has_kept
        uniform_rows += int(empty.sum())
        expected = visible / visible.sum(-1, keepdim=True).clamp(min=1)
        torch.testing.assert_close(p_BHTS[empty], expected[empty].float())
        torch.testing.assert_close(p_BHTS.sum(-1)[has_visible], torch.ones(int(has_visible.sum())))
    assert uniform_rows > 0


@pytest.mark.parametrize("sites", SITE_SETS, ids="+".join)
def test_the_fused_path_equals_the_observed_one(task, pattern_files, sites):
    model = build(task, **prune_flags(pattern_files, sites))
    net_input = batch_of(task, range(12))["net_input"]
    with torch.no_grad():
        fused = model(**net_input)[0]
    _, observed = seen_probabilities(model, net_input)
    real = net_input["prev_output_tokens"].ne(PAD)
    torch.testing.assert_close(fused[real], observed[real], atol=1e-5, rtol=0)


def test_gradients_of_the_fused_path_equal_those_of_the_observed_one(task, pattern_files):
    model = build(task, **prune_flags(pattern_files, SITES))
    net_input = batch_of(task, range(12))["net_input"]
    real = net_input["prev_output_tokens"].ne(PAD)
    gradients = []
    for observer in (None, lambda p: None):
        for modules in adopt_attention(model).values():
            for module in modules:
                module.observer = observer
        model.zero_grad()
        model(**net_input)[0][real].square().mean().backward()
        gradients.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for fused, observed in zip(*gradients, strict=True):
        torch.testing.assert_close(fused, observed, atol=1e-6, rtol=1e-4)


def test_without_flags_it_is_fairseqs_own_model(task):
    ours, stock = build(task), build(task, arch="transformer_tiny")
    assert isinstance(stock, TransformerModel) and type(stock.encoder.layers[0].self_attn) is not PrunedAttention
    assert ours.state_dict().keys() == stock.state_dict().keys()
    ours_weights, stock_weights = dict(ours.named_parameters()), dict(stock.named_parameters())
    assert all(torch.equal(ours_weights[name], stock_weights[name]) for name in stock_weights)
    net_input = batch_of(task, range(8))["net_input"]
    assert torch.equal(ours(**net_input)[0], stock(**net_input)[0])


def test_tau_zero_is_the_dense_model_bit_for_bit(task, pattern_files):
    dense, zero = build(task), build(task, **prune_flags(pattern_files, SITES, tau=0))
    net_input = batch_of(task, range(8))["net_input"]
    assert torch.equal(dense(**net_input)[0], zero(**net_input)[0])


def step_by_step(model, net_input):
    """The decoder's output, one token at a time: [B, T, V]."""
    encoder_out = model.encoder(net_input["src_tokens"], src_lengths=net_input["src_lengths"])
    previous, state = net_input["prev_output_tokens"], {}
    steps = [
        model.decoder(previous[:, : step + 1], encoder_out=encoder_out, incremental_state=state)[0]
        for step in range(previous.size(1))
    ]
    return torch.cat(steps, 1)


@pytest.mark.parametrize("entmax", [False, True])
@pytest.mark.parametrize("sites", [(), *SITE_SETS], ids=lambda sites: "+".join(sites) or "dense")
def test_incremental_decoding_equals_teacher_forcing(task, pattern_files, sites, entmax):
    model = build(task, **prune_flags(pattern_files, sites, USE_ENTMAX=entmax))
    net_input = batch_of(task, range(12))["net_input"]
    real = net_input["prev_output_tokens"].ne(PAD)
    with torch.no_grad():
        full, steps = model(**net_input)[0], step_by_step(model, net_input)
    assert real.all(0).sum() < real.size(1), "sentences of different lengths"
    torch.testing.assert_close(steps[real], full[real], atol=1e-5, rtol=0)


@pytest.mark.parametrize("how", [{}, {"USE_ENTMAX": True}, {"attention_backend": "block_sparse"}], ids=str)
@pytest.mark.parametrize(("beam", "prefix"), [(1, 0), (4, 0), (4, 2)])
def test_generated_scores_equal_teacher_forced_ones(task, pattern_files, how, beam, prefix):
    """Beams are reordered and dropped on the way; hypotheses outgrow the pattern's 12 target positions."""
    model = build(task, **prune_flags(pattern_files, SITES, **how))
    sample = batch_of(task, range(10))
    prefix_tokens = sample["target"][:, :prefix] if prefix else None
    generator = SequenceGenerator([model], task.target_dictionary, beam_size=beam, max_len_b=16, min_len=14)
    hypotheses = generator.generate([model], sample, prefix_tokens=prefix_tokens)
    assert all(len(best) == beam for best in hypotheses)
    model.eval()
    for sentence, best in enumerate(hypotheses):
        length = int(sample["net_input"]["src_lengths"][sentence])
        source = sample["net_input"]["src_tokens"][sentence : sentence + 1, :length]
        for hypothesis in best:
            tokens = hypothesis["tokens"]
            previous = torch.cat([tokens[-1:], tokens[:-1]])[None]  # eos first
            for module in adopt_attention(model)["dec-self"] + adopt_attention(model)["enc-dec"]:
                module.beyond_pattern = "dense"
            with torch.no_grad():
                output = model(source, torch.tensor([length]), previous)[0]
            expected = output.log_softmax(-1)[0].gather(-1, tokens[:, None])[:, 0]
            torch.testing.assert_close(hypothesis["positional_scores"], expected, atol=1e-5, rtol=0)
            assert len(tokens) > 12
            if prefix and (given := sample["target"][sentence, :prefix]).ne(PAD).all() and given.ne(2).all():
                assert torch.equal(tokens[:prefix], given)


def test_beams_may_share_the_keys_of_their_sentence(task, pattern_files):
    """fairseq's decoder can keep the encoder's keys once for all beams (``set_beam_size``)."""
    model = build(task, **prune_flags(pattern_files, ("enc-dec",)))
    beams, net_input = 3, batch_of(task, range(4))["net_input"]
    repeated = {name: tensor.repeat_interleave(beams, 0) for name, tensor in net_input.items()}
    with torch.no_grad():
        separate = step_by_step(model, repeated)
        for module in adopt_attention(model)["enc-dec"]:
            module.set_beam_size(beams)
        shared = step_by_step(model, repeated)
    torch.testing.assert_close(shared, separate, atol=1e-5, rtol=0)


@pytest.mark.parametrize("beyond", ["decoding", "dense", "error"])
def test_what_lies_beyond_the_pattern(task, pattern_files, beyond):
    model = build(task, **prune_flags(pattern_files, ("dec-self",), beyond_pattern=beyond))
    short = batch_of(task, [0])["net_input"]
    long = short | {"prev_output_tokens": torch.randint(4, 10, (1, 20), generator=torch.Generator().manual_seed(0))}
    limits = "expected at most 12 queries and 12 keys, the lengths of its pattern, found {} queries and {} keys"
    with torch.no_grad():
        if beyond != "dense":
            with pytest.raises(InputError, match=limits.format(20, 20)):
                model(**long)
        if beyond == "error":
            with pytest.raises(InputError, match=limits.format(13, 13)):
                step_by_step(model, long)
            return
        steps = step_by_step(model, long)
        for module in adopt_attention(model)["dec-self"]:
            module.beyond_pattern = "dense"
        full = model(**long)[0]
        seen, _ = seen_probabilities(model, long)
    torch.testing.assert_close(steps, full, atol=1e-5, rtol=0)
    assert all(
        (p[..., 12:, :] > 0).sum() == HEADS * sum(range(13, 21)) for (s, _), p in seen.items() if s == "dec-self"
    )


def test_a_long_source_is_refused_unless_told_otherwise(task, pattern_files):
    long = {
        "src_tokens": torch.full((1, 15), 5),
        "src_lengths": torch.tensor([15]),
        "prev_output_tokens": torch.tensor([[2, 5]]),
    }
    for site in ("enc-self", "enc-dec"):
        model = build(task, **prune_flags(pattern_files, (site,)))
        for decode in (lambda: model(**long), lambda: step_by_step(model, long)):  # noqa: B023
            with (
                torch.no_grad(),
                pytest.raises(InputError, match=f"{site} attention: expected at most .*found .*15 keys"),
            ):
                decode()
        model = build(task, **prune_flags(pattern_files, (site,), beyond_pattern="dense"))
        assert torch.isfinite(model(**long)[0]).all()


def test_left_padded_sources_are_refused(task, pattern_files):
    net_input = batch_of(task, range(6))["net_input"]
    net_input = net_input | {"src_tokens": net_input["src_tokens"].flip(1)}
    for sites, refuses in (((), False), (("dec-self",), False), (("enc-self",), True), (("enc-dec",), True)):
        model = build(task, **prune_flags(pattern_files, sites))
        if refuses:
            with pytest.raises(InputError, match="expected padding on the right"):
                model(**net_input)
        else:
            model(**net_input)


@given(st.integers(0, 2**16), st.sampled_from(["softmax", "entmax15"]), st.integers(1, 6), st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_pruning_a_cell_equals_a_score_of_minus_infinity(seed, normalizer, queries, keys):
    """Against five lines of plain attention, for cross-attention with random masks and padding."""
    from entmax import entmax15
    from fairseq.modules import MultiheadAttention

    torch.manual_seed(seed)
    attention = MultiheadAttention(8, HEADS, encoder_decoder_attention=True).eval()
    attention = PrunedAttention.adopt(attention, "enc-dec")
    attention.normalizer = normalizer
    pruned = torch.rand(HEADS, queries, keys) < 0.5
    attention.register_buffer("prune_mask", pruned)
    query, key = torch.randn(queries, 3, 8), torch.randn(keys, 3, 8)
    padding = torch.arange(keys)[None, :] >= torch.randint(1, keys + 1, (3, 1))
    found, weights = attention(query, key, key, key_padding_mask=padding, need_head_weights=True)
    fused, _ = attention(query, key, key, key_padding_mask=padding, need_weights=False)

    def heads(x):
        return x.view(len(x), 3, HEADS, -1).permute(1, 2, 0, 3)

    q, k, v = heads(attention.q_proj(query)), heads(attention.k_proj(key)), heads(attention.v_proj(key))
    scores = (q @ k.transpose(-1, -2)) / math.sqrt(4)
    scores = scores.masked_fill(padding[:, None, None], -torch.inf)
    kept = (~pruned)[None] & ~padding[:, None, None]
    scores = torch.where(
        kept.any(-1, keepdim=True),
        scores.masked_fill(~kept, -torch.inf),
        scores.clamp(max=0).mul(0).nan_to_num(-torch.inf),
    )
    scores = scores.masked_fill(padding[:, None, None], -torch.inf)
    p = scores.softmax(-1) if normalizer == "softmax" else entmax15(scores, -1)
    expected = attention.out_proj((p @ v).permute(2, 0, 1, 3).flatten(2))
    torch.testing.assert_close(weights, p.transpose(0, 1), atol=1e-5, rtol=0)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(fused, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kwargs", [{"add_bias_kv": True}, {"add_zero_attn": True}])
def test_attention_with_extra_keys_is_refused(kwargs):
    from fairseq.modules import MultiheadAttention

    with pytest.raises(InputError, match="expected plain attention"):
        PrunedAttention.adopt(MultiheadAttention(8, 2, self_attention=True, **kwargs), "dec-self")


def test_layers_that_are_dropped_at_random_are_all_pruned(task, pattern_files):
    model = build(task, encoder_layerdrop=0.5, decoder_layerdrop=0.5, **prune_flags(pattern_files, SITES))
    masks = [name for name in model.state_dict() if name.endswith("prune_mask")]
    assert len(masks) == 3 * LAYERS
