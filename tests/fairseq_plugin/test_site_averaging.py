"""Patterns gathered from batches, against sentence-by-sentence arithmetic."""

import pytest
import torch

from attention_pruning import InputError
from plugin.averaging import Lengths, average_attention, masks_observed_under
from plugin.batches import collated, dropped_sentences, plan_batches
from plugin.lengths import check_lengths
from plugin.model import adopt_attention
from plugin.observing import observe_attention
from tiny_translation import HEADS, LAYERS, batch_of, build, prune_flags

SITES = ("enc-self", "dec-self", "enc-dec")
PAD, EOS = 1, 2
CPU = torch.device("cpu")


def gather(task, model, max_tokens, sites=SITES, split="test", **plan):
    dataset = task.dataset(split)
    batches = plan_batches(task, dataset, model, max_tokens, **plan)
    accumulators = average_attention(model, collated(dataset, batches, CPU), sites, Lengths.of(dataset, batches), PAD)
    return {site: accumulators[site].finalize() for site in sites}


def brute_force(task, model, split="test"):
    """One unpadded sentence after another, attention computed from the weights by hand."""
    sums, counts = {}, {}
    dataset = task.dataset(split)
    for index in range(len(dataset)):
        pair = dataset[index]
        source, target = pair["source"][None], pair["target"][None]
        previous = torch.cat([target[:, -1:], target[:, :-1]], 1)
        for (site, layer), p_HTS in attention_by_hand(model, source, previous).items():
            queries, keys = p_HTS.shape[1:]
            total = sums.setdefault(site, torch.zeros(LAYERS, HEADS, 40, 40, dtype=torch.float64))
            total[layer, :, :queries, :keys] += p_HTS
            if layer == 0:
                seen = torch.ones(queries, keys, dtype=torch.int64)
                count = counts.setdefault(site, torch.zeros(40, 40, dtype=torch.int64))
                count[:queries, :keys] += seen.tril() if site == "dec-self" else seen
    return {site: (sums[site] / counts[site].clamp(min=1), counts[site]) for site in sums}


def attention_by_hand(model, source, previous):
    """(site, layer) -> [H, T, S], from the inputs and outputs of each attention, caught by hooks."""
    found, handles = {}, []

    def catch(site, layer):
        def hook(module, arguments, keywords):
            query, key = keywords["query"][:, 0], keywords["key"][:, 0]
            q = module.q_proj(query).view(len(query), HEADS, -1).transpose(0, 1)
            k = module.k_proj(query if site != "enc-dec" else key)
            k = k.view(len(k), HEADS, -1).transpose(0, 1)
            scores = q @ k.transpose(1, 2) / module.head_dim**0.5
            if site == "dec-self":
                scores = scores.masked_fill(torch.ones_like(scores).triu(1).bool(), -torch.inf)
            found[site, layer] = scores.softmax(-1).double()

        return hook

    for site, modules in adopt_attention(model).items():
        for layer, module in enumerate(modules):
            handles.append(module.register_forward_pre_hook(catch(site, layer), with_kwargs=True))
    with torch.no_grad():
        model(source, torch.tensor([source.size(1)]), previous)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize("arch", ["ap_transformer_tiny", "transformer_tiny"])
@pytest.mark.parametrize("max_tokens", [20, 60, 1000])
def test_patterns_equal_brute_force_whatever_the_batches(task, arch, max_tokens):
    model = build(task, arch=arch, dropout=0.5, attention_dropout=0.5)
    expected = brute_force(task, model)
    found = gather(task, model.train(), max_tokens)
    for site in SITES:
        average, count = expected[site]
        queries, keys = found[site].query_length, found[site].key_length
        assert torch.equal(found[site].count, count[:queries, :keys])
        assert (
            count.sum() == count[:queries, :keys].sum()
            and found[site].count[-1].any()
            and found[site].count[:, -1].any()
        )
        torch.testing.assert_close(found[site].average.double(), average[..., :queries, :keys], atol=1e-6, rtol=0)


def test_all_sites_in_one_pass_equal_one_at_a_time(task):
    model = build(task)
    together = gather(task, model, 60)
    for site in SITES:
        alone = gather(task, model, 60, (site,))[site]
        torch.testing.assert_close(alone.average, together[site].average, atol=1e-6, rtol=0)
        assert torch.equal(alone.count, together[site].count)


def test_observers_leave_no_trace(task):
    model = build(task)
    net_input = batch_of(task, range(6))["net_input"]
    with torch.no_grad():
        before = model(**net_input)[0]
        gather(task, model, 60)
        assert torch.equal(model(**net_input)[0], before)


def test_a_subset_of_batches_is_drawn_with_its_seed(task):
    model, dataset = build(task), task.dataset("train")
    everything = plan_batches(task, dataset, model, 60)
    some = [plan_batches(task, dataset, model, 60, max_batches=3, seed=seed) for seed in (1, 1, 2)]
    as_sets = [{tuple(batch) for batch in batches} for batches in some]
    assert as_sets[0] == as_sets[1] != as_sets[2] and len(as_sets[0]) == 3
    assert sorted(index for batch in everything for index in batch) == list(range(len(dataset)))
    with pytest.raises(InputError, match="expected sentences to read, found none"):
        plan_batches(task, dataset, model, 60, max_batches=0)
    with pytest.raises(InputError, match="--max-tokens: expected at least .*, the longest sentence, found 3"):
        plan_batches(task, dataset, model, 3)


def test_left_padded_batches_are_refused(task):
    model, batch = build(task), batch_of(task, range(6))
    batch["net_input"]["src_tokens"] = batch["net_input"]["src_tokens"].flip(1)
    with pytest.raises(InputError, match="expected padding on the right"):
        average_attention(model, [batch], SITES, Lengths(20, 20), PAD)


def test_probabilities_are_seen_in_float32_whatever_the_model_computes_in(task):
    """In half precision what is below 3e-8 would be 0."""
    model, seen = build(task).half(), []
    for modules in adopt_attention(model).values():
        for module in modules:
            torch.nn.init.normal_(module.q_proj.weight, std=2.0)
    batches = collated(task.dataset("test"), [[0, 1, 2, 3]], CPU)
    observe_attention(model, adopt_attention(model), SITES, batches, PAD, lambda *shown: seen.append(shown[2]))
    assert len(seen) == len(SITES) * LAYERS and {p.dtype for p in seen} == {torch.float32}
    smallest = min(float(p[p > 0].min()) for p in seen)
    assert smallest < 2**-25 and torch.tensor(smallest).half() == 0


def test_patterns_of_a_pruned_model_say_so(task, pattern_files):
    record = build(task, **prune_flags(pattern_files, ("enc-self", "dec-self"))).record
    encoder, decoder = (record[site]["fingerprint"] for site in ("enc-self", "dec-self"))
    assert masks_observed_under(record, "enc-self") == {
        "observed_under_mask": encoder,
        "observed_under_mask_dec-self": decoder,
    }
    assert masks_observed_under(record, "enc-dec") == {
        "observed_under_mask_enc-self": encoder,
        "observed_under_mask_dec-self": decoder,
    }
    unpruned = build(task, **prune_flags(pattern_files, ("enc-self",), tau=0)).record
    assert masks_observed_under(unpruned, "enc-self") == masks_observed_under({}, "enc-self") == {}


def test_sentences_that_are_too_long_for_the_model_are_counted(task):
    model, dataset = build(task, max_source_positions=5, max_target_positions=6), task.dataset("test")
    task.cfg.max_source_positions, before = 5, task.cfg.max_source_positions
    try:
        kept = sum(len(batch) for batch in plan_batches(task, dataset, model, 400))
        assert 0 < dropped_sentences(task, dataset, model) == len(dataset) - kept
    finally:
        task.cfg.max_source_positions = before
    assert dropped_sentences(task, dataset, build(task)) == 0


def test_attention_is_observed_without_the_words_of_the_output(task, monkeypatch):
    model = build(task)
    monkeypatch.setattr(model.decoder, "output_layer", lambda features: pytest.fail("the output layer was computed"))
    gather(task, model, 200)


@pytest.mark.parametrize("beyond", ["decoding", "error", "dense"])
def test_a_pattern_that_is_too_short_is_noticed_before_the_first_update(task, pattern_files, beyond, caplog):
    """The longest target of the test set has more than the 12 positions of the pattern, those of the training too."""
    lengths = task.dataset("train").tgt_sizes
    assert (longer := int((lengths > 12).sum())) and task.dataset("train").src_sizes.max() <= 9
    model = build(task, **prune_flags(pattern_files, ("dec-self",), beyond_pattern=beyond))
    found = f"found {longer} of {len(lengths)} sentences of train that are longer \\(up to {lengths.max()} queries"
    if beyond == "dense":
        check_lengths(task, model, ["train"])
        assert f"{longer} of {len(lengths)} sentences of train" in caplog.text
    else:
        with pytest.raises(InputError, match=f"dec-self attention: expected at most 12 queries and 12 keys, .*{found}"):
            check_lengths(task, model, ["train"])
    check_lengths(task, build(task, **prune_flags(pattern_files, ("enc-self",), beyond_pattern=beyond)), ["train"])
