"""What transformers models ask of attention: autocast, caches, masks of their own, threads, devices, graphs."""

from __future__ import annotations

import copy
import threading
import warnings

import pytest
import torch

from attention_pruning import InputError
from attention_pruning.huggingface import prune_model
from attention_pruning.huggingface.attention_site import SITE_ATTRIBUTE, AttentionSite
from attention_pruning.ops import DenseAttentionWarning, explain, reasons
from test_huggingface_blocks import batch_of, block_masks
from tiny_models import MODELS, make, padded

DECODERS = {"GPT-2", "Llama", "BART", "T5"}
#: Each model without a cache, and those that have one with it; RoBERTa's positions end before 32.
CASES = [
    (name, cache) for name in MODELS if name != "RoBERTa" for cache in (False, True) if not cache or name in DECODERS
]


def masks_of(name, kind):
    return block_masks(name, size=16 if kind == "blocks" else 1)


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("kind", ["cells", "blocks"])
@pytest.mark.parametrize(("name", "cache"), CASES)
def test_nothing_that_the_dense_model_takes_is_refused(name, kind, autocast, cache):
    """Under autocast queries and keys may come in float32 and values in bfloat16."""
    model, reference = (prune_model(make(name), masks_of(name, kind), backend) for backend in ("auto", "reference"))
    batch = batch_of(name) | ({"use_cache": cache} if name in DECODERS else {})
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        found, expected = (part(**batch).logits for part in (model, reference))
        found.float().sum().backward()
    scale = float(expected.abs().max())
    torch.testing.assert_close(found.float() / scale, expected.float() / scale, atol=0.2 if autocast else 1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["cells", "blocks"])
def test_gradient_checkpointing_under_autocast(kind):
    model = prune_model(make("Llama"), masks_of("Llama", kind)).train()
    model.gradient_checkpointing_enable()
    with torch.autocast("cpu", torch.bfloat16):
        model(**batch_of("Llama"), use_cache=False).logits.float().sum().backward()
    assert all(weight.grad.isfinite().all() for weight in model.parameters())


def prefix_mask(length, prefix):
    """Rows see the prefix and what came before them: 4D, True = visible."""
    visible = torch.ones(length, length, dtype=torch.bool).tril()
    visible[:, :prefix] = True
    return visible[None, None]


def chunked_mask(length, chunk):
    chunks = torch.arange(length) // chunk
    return (torch.ones(length, length, dtype=torch.bool).tril() & (chunks[:, None] == chunks))[None, None]


@pytest.mark.parametrize("mask", [prefix_mask(32, 4), chunked_mask(32, 8)], ids=["prefix", "chunks"])
@pytest.mark.parametrize("name", ["GPT-2", "Llama"])
def test_rows_of_a_mask_of_another_kind_are_the_position_ids(name, mask):
    """Each row meets the cells of its own position: those of a mask by rows alone, which shows the row."""
    masks = block_masks(name, size=1, share=0.0)["self"]
    row = torch.arange(masks.query_length)
    masks.pruned[:] = ((row[:, None] + row) % 3 == 0) & (row != row[:, None])
    model = prune_model(make(name), masks)
    ids = padded((32,), 32)["input_ids"]
    site = next(module for module in model.modules() if isinstance(module, AttentionSite))
    places = site.places(mask, 32, 32, ids.device, torch.arange(32)[None])
    assert places.query.index.expand(1, 32)[0].tolist() == list(range(32)) and places.offset is None
    found = model(input_ids=ids, attention_mask=mask, position_ids=torch.arange(32)[None], use_cache=False).logits
    dense = make(name, implementation="sdpa")
    visible = mask & ~masks.pruned[:1, 0, :32, :32][:, None]
    expected = dense(input_ids=ids, attention_mask=visible, use_cache=False).logits
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)


def test_a_mask_of_another_kind_without_position_ids_is_refused():
    model = prune_model(make("BART"), block_masks("BART", sites=["dec-self"]))
    batch = batch_of("BART")
    batch["decoder_attention_mask"] = prefix_mask(29, 4).repeat(3, 1, 1, 1)
    with pytest.raises(InputError, match="position_ids for all 29 keys, found a mask of another kind"):
        model(**batch)


def test_threads_that_share_a_model_do_not_mix_their_steps():
    model = prune_model(make("BART"), block_masks("BART", sites=["enc-dec"]))
    whole, short = batch_of("BART"), {name: value[1:2, :5] for name, value in batch_of("BART").items()}
    with torch.no_grad():
        expected = [model(**batch).logits for batch in (whole, short)]
    wrong = []

    def work(batch, wanted):
        for _ in range(40):
            try:
                with torch.no_grad():
                    torch.testing.assert_close(model(**batch).logits, wanted, atol=1e-4, rtol=1e-4)
            except Exception as error:  # noqa: BLE001 - whatever it is, the other thread caused it
                wrong.append(error)
                return

    threads = [threading.Thread(target=work, args=pair) for pair in zip((whole, short), expected, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("kind", ["cells", "blocks"])
def test_a_model_made_on_the_meta_device_has_its_masks(kind):
    with torch.device("meta"):
        model = MODELS["BERT"].build().eval()
    prune_model(model, masks_of("BERT", kind))
    reference = prune_model(make("BERT"), masks_of("BERT", kind))
    model.to_empty(device="cpu")
    model.load_state_dict(reference.state_dict())
    model.bert.embeddings.load_state_dict(reference.bert.embeddings.state_dict())
    for buffer, other in zip(model.buffers(), reference.buffers(), strict=True):
        buffer.copy_(other)
    torch.testing.assert_close(model(**batch_of("BERT")).logits, reference(**batch_of("BERT")).logits)


@pytest.mark.parametrize("name", ["BERT", "Llama"])
@pytest.mark.parametrize("kind", ["cells", "blocks"])
def test_a_forward_pass_on_the_meta_device_has_the_right_shape(name, kind):
    model = prune_model(make(name), masks_of(name, kind)).to("meta")
    batch = {"input_ids": batch_of(name)["input_ids"].to("meta")}  # transformers looks at a mask, which fails there
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DenseAttentionWarning)
        logits = model(**batch).logits
    assert logits.is_meta and logits.shape == (*batch["input_ids"].shape, model.config.vocab_size)


def test_copies_of_a_model_share_what_was_made_of_its_masks():
    """As ``nn.DataParallel`` copies modules at every step: nothing is made again."""
    model = prune_model(make("BERT"), block_masks("BERT"))
    model(**batch_of("BERT"))
    site = getattr(model.bert.encoder.layer[0].attention.self, SITE_ATTRIBUTE)
    for again in (copy.deepcopy(model), copy.copy(site)):
        other = (
            again
            if isinstance(again, AttentionSite)
            else getattr(again.bert.encoder.layer[0].attention.self, SITE_ATTRIBUTE)
        )
        assert other.layer_mask is site.layer_mask


@pytest.mark.parametrize("name", ["GPT-2", "Llama"])
@pytest.mark.parametrize("kind", ["cells", "blocks"])
def test_a_pruned_decoder_exports_where_the_dense_one_does(name, kind):
    ids = padded((32, 32), 32)["input_ids"]
    model = prune_model(make(name), masks_of(name, kind))
    expected = model(input_ids=ids, use_cache=False).logits
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, (), {"input_ids": ids, "use_cache": False}, strict=False)
    torch.testing.assert_close(program.module()(input_ids=ids, use_cache=False).logits, expected, atol=1e-4, rtol=1e-4)


def test_explain_says_what_computed_each_layer(capsys):
    mask = block_masks("BERT", share=0.0)["self"]
    mask.pruned[0, :, 0, 1] = True
    model = prune_model(make("BERT"), mask, "block_sparse")
    rows = explain(model, batch_of("BERT"))
    table = capsys.readouterr().out.splitlines()
    assert [row.layer for row in rows] == [0, 1] and {row.site for row in rows} == {"self"}
    assert (rows[0].backend, rows[0].computed, rows[0].blocks, rows[0].block_size) == ("block_sparse", 12, 16, 16)
    assert (rows[1].backend, rows[1].reason) == ("sdpa", "nothing is pruned")
    assert table[0].split() == ["site", "layer", "backend", "blocks", "computed", "reason"] and len(table) == 3


@pytest.mark.parametrize(
    ("case", "reason"),
    [
        ("left padding", "padded on the left"),
        ("compile", "torch.compile"),
        ("float64", "float32 or bfloat16, found torch.float64"),
        ("own mask", "a mask of its own"),
    ],
)
def test_a_call_that_saves_nothing_warns_once_and_says_why(case, reason, monkeypatch):
    monkeypatch.setattr(reasons, "_warned", set())
    model, batch = prune_model(make("BERT"), block_masks("BERT", share=0.9)), batch_of("BERT", case == "left padding")
    if case == "float64":
        model = model.double()
    if case == "own mask":
        batch["attention_mask"] = torch.rand(3, 1, 32, 32)
    if case == "compile":
        torch.compiler.reset()
        model = torch.compile(model, backend="eager", fullgraph=True)
    with pytest.warns(DenseAttentionWarning, match=f"self attention is pruned.*{reason}") as warned:
        for _ in range(2):
            model(**batch)
    assert len([w for w in warned if w.category is DenseAttentionWarning]) == 1
