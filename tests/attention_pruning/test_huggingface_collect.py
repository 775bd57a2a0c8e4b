"""Laws of patterns collected from transformers models."""

from __future__ import annotations

import pytest
import torch
from transformers import (
    AlbertConfig,
    AlbertForMaskedLM,
    BertConfig,
    BertModel,
    EncoderDecoderModel,
    GPT2Config,
    GPT2LMHeadModel,
)

from attention_pruning import InputError
from attention_pruning.huggingface import collect_patterns, find_stacks, model_masks, prune_model
from attention_pruning.make import from_pattern
from test_huggingface_attention import positions_of
from tiny_models import LENGTH, MODELS, SOURCE_LENGTH, batch_for, lengths_of, make, padded, random_masks, real_outputs

NAMES = list(MODELS)
_ATTENTIONS = {
    "self": "attentions",
    "enc-self": "encoder_attentions",
    "dec-self": "decoder_attentions",
    "enc-dec": "cross_attentions",
}


def whole_lengths(name):
    return {site: lengths_of(site, MODELS[name].inputs) for site in find_stacks(make(name))}


def plain_averages(name, batches):
    """By site (average, count): output_attentions of the eager model, averaged over real tokens by a plain loop."""
    model = make(name)
    sums, counts = {}, {}
    for batch in batches:
        with torch.no_grad():
            outputs = model(**batch, output_attentions=True)
        positions = positions_of(batch)
        masks = real_tokens(batch)
        for site, stack in find_stacks(model).items():
            attentions = torch.stack(outputs[_ATTENTIONS[site]]).double()  # [uses, B, H, Q, K]
            attentions = attentions.unflatten(0, (stack.layers, -1)).mean(1)
            lengths = lengths_of(site, MODELS[name].inputs)
            total = sums.setdefault(site, torch.zeros(stack.layers, stack.heads, *lengths, dtype=torch.float64))
            count = counts.setdefault(site, torch.zeros(lengths, dtype=torch.int64))
            for row in range(attentions.shape[1]):
                for query, key in torch.cartesian_prod(*map(torch.arange, attentions.shape[3:])).tolist():
                    if not (masks[site][0][row][query] and masks[site][1][row][key]):
                        continue
                    cell = positions[site][0][row][query], positions[site][1][row][key]
                    if stack.causal and cell[1] > cell[0]:
                        continue
                    total[:, :, cell[0], cell[1]] += attentions[:, row, :, query, key]
                    count[cell] += 1
    return {site: (sums[site] / counts[site].clamp(min=1), counts[site]) for site in sums}


def real_tokens(batch):
    if "pixel_values" in batch:
        mask = torch.ones(len(batch["pixel_values"]), 5)
        return {"self": (mask, mask)}
    source, target = batch["attention_mask"], batch.get("decoder_attention_mask")
    return {"self": (source, source), "enc-self": (source, source)} | (
        {} if target is None else {"dec-self": (target, target), "enc-dec": (target, source)}
    )


def assert_same_patterns(found, expected):
    assert found.keys() == expected.keys()
    for site, pattern in found.items():
        average, count = (
            expected[site]
            if isinstance(expected[site], tuple)
            else (
                expected[site].average,
                expected[site].count,
            )
        )
        torch.testing.assert_close(pattern.average, average.float(), atol=2e-6, rtol=0)
        assert torch.equal(pattern.count, count)


@pytest.mark.parametrize("name", NAMES)
def test_a_pattern_is_the_plain_average_without_padding(name):
    batches = [batch_for(name), batch_for(name, left=True, seed=5)]
    found = collect_patterns(make(name), batches)
    assert_same_patterns(found, plain_averages(name, batches))
    for site, pattern in found.items():
        assert pattern.site == site and pattern.metadata["sequences"] == 6


def rows_of(batch):
    """The batch, one sequence at a time."""
    size = len(next(iter(batch.values())))
    return [{name: value[row : row + 1] for name, value in batch.items()} for row in range(size)]


@pytest.mark.parametrize("name", ["BERT", "Llama", "BART", "ALBERT"])
def test_batch_size_and_order_do_not_matter(name):
    batches = [batch_for(name, seed=seed) for seed in range(3)]
    single = [row for batch in batches for row in rows_of(batch)]
    expected = collect_patterns(make(name), batches, lengths=whole_lengths(name))
    assert_same_patterns(collect_patterns(make(name), reversed(single), lengths=whole_lengths(name)), expected)


def test_dynamic_padding_gives_the_same_pattern():
    batch = batch_for("BERT")
    single = [{k: v[:, : int(row["attention_mask"].sum())] for k, v in row.items()} for row in rows_of(batch)]
    expected = collect_patterns(make("BERT"), [batch])
    assert_same_patterns(collect_patterns(make("BERT"), single[::-1], lengths=LENGTH), expected)


def test_labels_tell_the_padding_of_a_decoder():
    batch = batch_for("BART")
    source = {name: batch[name] for name in ("input_ids", "attention_mask")}
    mask = batch["decoder_attention_mask"]
    labels = batch["decoder_input_ids"].masked_fill(mask == 0, -100)
    found = collect_patterns(make("BART"), [source | {"labels": labels}])
    given = collect_patterns(make("BART"), [source | {"labels": labels, "decoder_attention_mask": mask}])
    assert_same_patterns(found, given)
    assert found["dec-self"].metadata["tokens"] == int(mask.sum())


def test_the_model_is_left_as_it_was():
    model = make("BART", implementation="sdpa").train()
    model.model.encoder.eval()
    modes = [module.training for module in model.modules()]
    names = [name for name, _ in model.named_modules()]
    collect_patterns(model, [batch_for("BART")], sites=["enc-dec"])
    assert [module.training for module in model.modules()] == modes
    assert [name for name, _ in model.named_modules()] == names
    assert {part.config._attn_implementation for part in (model, model.model.encoder)} == {"sdpa"}
    broken = {"input_ids": torch.zeros(1, 2, 3, dtype=torch.long)}
    with pytest.raises(Exception):  # noqa: B017, whatever the model makes of such an input
        collect_patterns(model, [broken])
    assert [name for name, _ in model.named_modules()] == names


def test_a_pruned_model_is_observed_under_its_masks():
    batch, masks = batch_for("Llama"), random_masks("Llama", 0.5)
    masks["self"].pruned[0, 0] = False
    masks["self"].pruned[..., 0] = False
    model = prune_model(make("Llama"), masks)
    before = real_outputs(model, batch)
    pattern = collect_patterns(model, [batch])["self"]
    assert pattern.average[masks["self"].pruned].max() == 0
    assert model_masks(model) == masks
    assert torch.equal(real_outputs(model, batch), before)
    assert pattern.metadata["observed_under_mask"] == masks["self"].fingerprint


def test_patterns_of_a_pruned_model_are_marked():
    batch, masks = batch_for("BART"), random_masks("BART", 0.5, sites=["enc-self", "dec-self"])
    dense = collect_patterns(make("BART"), [batch])
    assert not any(name.startswith("observed") for pattern in dense.values() for name in pattern.metadata)
    patterns = collect_patterns(prune_model(make("BART"), masks), [batch])
    marks = {
        site: {name: value for name, value in pattern.metadata.items() if name.startswith("observed")}
        for site, pattern in patterns.items()
    }
    encoder, decoder = (masks[site].fingerprint for site in ("enc-self", "dec-self"))
    assert marks == {
        "enc-self": {"observed_under_mask": encoder, "observed_under_mask_dec-self": decoder},
        "dec-self": {"observed_under_mask": decoder, "observed_under_mask_enc-self": encoder},
        "enc-dec": {"observed_under_mask_enc-self": encoder, "observed_under_mask_dec-self": decoder},
    }
    assert from_pattern(patterns["enc-self"], 0.5).metadata["observed_under_mask"] == encoder


@pytest.mark.parametrize("name", ["BERT", "GPT-2", "BART"])
def test_collect_prune_evaluate(name):
    batch = batch_for(name)
    patterns = collect_patterns(make(name), [batch])
    masks = {site: from_pattern(pattern, 0.5, rule="allowed") for site, pattern in patterns.items()}
    pruned = collect_patterns(prune_model(make(name), masks), [batch])
    for site, mask in masks.items():
        kept = ~mask.pruned & mask.allowed
        assert pruned[site].average[~kept].max() <= patterns[site].average[~kept].max()
        assert pruned[site].average[kept].sum() > patterns[site].average[kept].sum()


def test_blocks_are_pooled_patterns():
    batches = [{"input_ids": padded((LENGTH,) * 4, LENGTH, seed=seed)["input_ids"]} for seed in range(2)]
    cells = collect_patterns(make("BERT"), batches)["self"]
    blocks = collect_patterns(make("BERT"), batches, block_size=3)["self"]
    torch.testing.assert_close(blocks.average, cells.pooled(3).average, atol=1e-6, rtol=0)


def test_albert_has_one_layer_for_each_module_that_it_calls_again():
    shape = {"vocab_size": 40, "hidden_size": 16, "num_attention_heads": 4, "intermediate_size": 16}
    model = AlbertForMaskedLM(AlbertConfig(**shape, embedding_size=8, num_hidden_layers=4, num_hidden_groups=2))
    pattern = collect_patterns(model.eval(), [batch_for("ALBERT")])["self"]
    assert pattern.layers == 2 and pattern.metadata["sequences"] == 3


def test_a_model_of_two_models_has_three_sites():
    encoder = BertModel(BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    decoder = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=4, add_cross_attention=True))
    model = EncoderDecoderModel(encoder=encoder, decoder=decoder)
    batch = batch_for("BART")
    patterns = collect_patterns(model, [batch])
    assert {site: (pattern.layers, pattern.heads) for site, pattern in patterns.items()} == {
        "enc-self": (1, 2),
        "dec-self": (2, 4),
        "enc-dec": (2, 4),
    }
    assert patterns["enc-dec"].count.shape == (LENGTH, SOURCE_LENGTH)


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        ([], {}, "at least one batch"),
        ([["ids"]], {}, "map argument names to tensors, found list"),
        (padded((3,), 3), {}, "map argument names to tensors, found str"),
        (None, {}, "expected batches to go through, found NoneType"),
        ([padded((3,), 3), padded((5,), 5)], {}, "at most 3 queries and 3 keys, the lengths of the first batch"),
        ([padded((5,), 5)], {"lengths": 4}, "at most 4 queries and 4 keys, the lengths asked for"),
        ([padded((5,), 5)], {"sites": ["enc-dec"]}, "expected some of self, those of BertForMaskedLM, found enc-dec"),
    ],
)
def test_refusals(batches, options, message):
    with pytest.raises(InputError, match=message):
        collect_patterns(make("BERT"), batches, **options)


def test_packed_sequences_are_refused():
    batch = {
        "input_ids": padded((LENGTH,), LENGTH)["input_ids"],
        "position_ids": torch.tensor([[0, 1, 2, 3, 0, 1, 2]]),
        "use_cache": False,
    }
    with pytest.raises(InputError, match="packed sequences"):
        collect_patterns(make("Llama"), [batch])
