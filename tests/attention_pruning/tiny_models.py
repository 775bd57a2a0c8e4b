"""Tiny random transformers models, batches for them with padding, and random masks. Nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import transformers as tf

from attention_pruning import MaskRecipe, PruneMask
from attention_pruning.huggingface import find_stacks
from attention_pruning.huggingface.prune import set_implementation
from attention_pruning.structure import visible_cells

VOCABULARY = 40
PADDING = 1
LENGTH, SOURCE_LENGTH = 7, 9
#: Real tokens of each sequence of a batch: one whole, two padded.
REAL, SOURCE_REAL = (7, 4, 2), (5, 9, 3)

_ENCODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 16,
    "max_position_embeddings": 32,
    "pad_token_id": PADDING,
}


@dataclass(frozen=True)
class Tiny:
    """How to build a model, and what kind of input it takes: "tokens", "pairs" (source and target) or "pixels"."""

    build: Callable[[], tf.PreTrainedModel]
    inputs: str = "tokens"


def _bart():
    return tf.BartForConditionalGeneration(
        tf.BartConfig(
            vocab_size=VOCABULARY,
            d_model=16,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=16,
            decoder_ffn_dim=16,
            max_position_embeddings=32,
            pad_token_id=PADDING,
            bos_token_id=0,
            eos_token_id=2,
            decoder_start_token_id=2,
            forced_eos_token_id=None,
        )
    )


def _t5():
    return tf.T5ForConditionalGeneration(
        tf.T5Config(
            vocab_size=VOCABULARY,
            d_model=16,
            d_kv=4,
            num_heads=4,
            d_ff=16,
            num_layers=2,
            pad_token_id=PADDING,
            decoder_start_token_id=PADDING,
            dropout_rate=0.0,
        )
    )


def _gpt2(**more):
    return tf.GPT2LMHeadModel(
        tf.GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=32,
            n_embd=16,
            n_layer=2,
            n_head=4,
            bos_token_id=0,
            eos_token_id=2,
            pad_token_id=PADDING,
            **more,
        )
    )


def _llama():
    return tf.LlamaForCausalLM(
        tf.LlamaConfig(**_ENCODER | {"bos_token_id": 0, "eos_token_id": 2}, num_key_value_heads=2)
    )


def _vit():
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    shape = {name: _ENCODER[name] for name in names}
    return tf.ViTForImageClassification(tf.ViTConfig(**shape, image_size=8, patch_size=4, num_channels=1, num_labels=3))


def _distilbert():
    config = tf.DistilBertConfig(
        vocab_size=VOCABULARY,
        dim=16,
        n_layers=2,
        n_heads=4,
        hidden_dim=16,
        max_position_embeddings=32,
        pad_token_id=PADDING,
    )
    return tf.DistilBertForMaskedLM(config)


def _albert():
    return tf.AlbertForMaskedLM(tf.AlbertConfig(**_ENCODER, embedding_size=8))


MODELS = {
    "BERT": Tiny(lambda: tf.BertForMaskedLM(tf.BertConfig(**_ENCODER))),
    "RoBERTa": Tiny(lambda: tf.RobertaForMaskedLM(tf.RobertaConfig(**_ENCODER))),
    "DistilBERT": Tiny(_distilbert),
    "ELECTRA": Tiny(lambda: tf.ElectraForMaskedLM(tf.ElectraConfig(**_ENCODER, embedding_size=8))),
    "ALBERT": Tiny(_albert),
    "GPT-2": Tiny(_gpt2),
    "Llama": Tiny(_llama),
    "BART": Tiny(_bart, "pairs"),
    "T5": Tiny(_t5, "pairs"),
    "ViT": Tiny(_vit, "pixels"),
}


def make(name: str, seed: int = 0, implementation: str = "eager") -> tf.PreTrainedModel:
    """A tiny model in evaluation mode; its attention is far from uniform, so that a wrong cell shows."""
    torch.manual_seed(seed)
    model = MODELS[name].build()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.5)
    set_implementation(model, implementation)
    return model.eval()


def padded(real: tuple[int, ...], length: int, left: bool = False, seed: int = 0) -> dict[str, torch.Tensor]:
    """Token ids [B, length] whose first (or last) ``real`` are real tokens, and the attention mask that says so."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(real), length), PADDING)
    mask = torch.zeros(len(real), length, dtype=torch.long)
    for row, number in enumerate(real):
        place = slice(length - number, length) if left else slice(0, number)
        ids[row, place] = torch.randint(3, VOCABULARY, (number,), generator=generator)
        mask[row, place] = 1
    return {"input_ids": ids, "attention_mask": mask}


def batch_for(name: str, left: bool = False, seed: int = 0) -> dict[str, torch.Tensor]:
    """A batch with padding for a model."""
    kind = MODELS[name].inputs
    if kind == "pixels":
        return {"pixel_values": torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(seed))}
    if kind == "tokens":
        return padded(REAL, LENGTH, left, seed)
    target = padded(REAL, LENGTH, left=False, seed=seed + 1)
    return padded(SOURCE_REAL, SOURCE_LENGTH, left, seed) | {
        "decoder_input_ids": target["input_ids"],
        "decoder_attention_mask": target["attention_mask"],
    }


def real_outputs(model: tf.PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The logits of real tokens: [number, classes]."""
    logits = model(**batch).logits
    mask = batch.get("decoder_attention_mask", batch.get("attention_mask"))
    return logits if mask is None else logits[mask.bool()]


def lengths_of(site: str, kind: str) -> tuple[int, int]:
    """Queries and keys of the batches above."""
    if kind == "pixels":
        return 5, 5
    source = LENGTH if kind == "tokens" else SOURCE_LENGTH
    return {
        "self": (source, source),
        "enc-self": (source, source),
        "dec-self": (LENGTH, LENGTH),
        "enc-dec": (LENGTH, source),
    }[site]


def random_masks(name: str, share: float, seed: int = 0, block_size: int = 1, sites=None, extra: int = 0):
    """One random mask for each site of a model, without a row floor: some rows lose everything. ``share`` 0 keeps all.

    ``extra`` makes masks longer than the batches above.
    """
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for site, stack in find_stacks(make(name)).items():
        if sites is not None and site not in sites:
            continue
        queries, keys = (length + extra for length in lengths_of(site, MODELS[name].inputs))
        blocks = (-(-queries // block_size), -(-keys // block_size))
        pruned = torch.rand(stack.layers, stack.heads, *blocks, generator=generator) < share
        if share:
            pruned[0, 0] = True  # every row of one head
        masks[site] = PruneMask(
            pruned,
            visible_cells(queries, keys, stack.causal),
            site=site,
            causal=stack.causal,
            recipe=MaskRecipe(share, rule="allowed", scope="layer", row_floor="none", block_size=block_size),
            metadata={"seed": seed},
        )
    return masks


def logits_in_pieces(model, batch, pieces, cache):
    """Logits of a batch that is read in pieces into a cache, and the positions of its real tokens."""
    positions = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
    logits, end = [], 0
    with torch.no_grad():
        for piece in pieces:
            here, end = slice(end, end + piece), end + piece
            out = model(
                input_ids=batch["input_ids"][:, here],
                attention_mask=batch["attention_mask"][:, :end],
                position_ids=positions[:, here],
                past_key_values=cache,
            )
            logits.append(out.logits)
    return torch.cat(logits, 1), positions
