"""Architectures of transformers, tiny and random: each is supported or refused with a reason, none is wrong.

Supported is a model that is the dense one under masks that prune nothing, that differs under masks that do, that gives
the same by the fastest backend and by the readable one, and whose generation equals its full forward pass.
"""

from __future__ import annotations

import contextlib
import warnings

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from attention_pruning import InputError, PruneMask
from attention_pruning.huggingface import find_stacks, prune_model
from attention_pruning.ops.reasons import DenseAttentionWarning

LENGTH, NEW = 12, 4
#: Sizes by whatever names configurations have for them.
SIZES = {
    16: ("hidden_size", "n_embd", "d_model", "dim", "embedding_size", "ffn_dim", "intermediate_size", "n_inner", "d_ff")
    + (
        "hidden_dim",
        "encoder_ffn_dim",
        "decoder_ffn_dim",
        "moe_intermediate_size",
        "word_embed_proj_dim",
        "ffn_hidden_size",
    ),
    2: (
        "num_hidden_layers",
        "n_layer",
        "n_layers",
        "num_layers",
        "encoder_layers",
        "decoder_layers",
        "num_decoder_layers",
    ),
    4: ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads")
    + ("head_dim", "d_kv", "num_local_experts", "rotary_dim", "num_experts"),
    1: ("pad_token_id", "type_vocab_size"),
    64: ("vocab_size", "max_position_embeddings", "n_positions", "n_ctx"),
}
CAUSAL = [
    "gpt2",
    "gpt_neo",
    "gpt_neox",
    "gptj",
    "codegen",
    "opt",
    "llama",
    "mistral",
    "mixtral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "phi",
    "phi3",
    "olmo",
    "olmo2",
    "stablelm",
    "granite",
    "cohere",
    "starcoder2",
    "smollm3",
    "glm",
    "helium",
    "nemotron",
    "gpt_oss",
    "falcon",
    "bloom",
    "mpt",
    "biogpt",
    "xglm",
    "gpt_bigcode",
    "persimmon",
]
MASKED = [
    "bert",
    "roberta",
    "distilbert",
    "electra",
    "albert",
    "xlm-roberta",
    "camembert",
    "modernbert",
    "mpnet",
    "deberta",
    "deberta-v2",
    "longformer",
    "roberta-prelayernorm",
    "convbert",
    "nystromformer",
    "big_bird",
    "ernie",
    "mobilebert",
]
PAIRS = [
    "bart",
    "mbart",
    "t5",
    "mt5",
    "pegasus",
    "marian",
    "m2m_100",
    "blenderbot",
    "blenderbot-small",
    "led",
    "plbart",
]
#: What is refused, and a word of the reason.
REFUSED = {
    **dict.fromkeys(("falcon", "bloom", "mpt", "gptj", "codegen", "gpt_neo"), "computes its attention itself"),
    **dict.fromkeys(("deberta", "deberta-v2", "longformer", "led"), "computes its attention itself"),
    **dict.fromkeys(("convbert", "nystromformer", "big_bird", "mpnet"), "computes its attention itself"),
    "xglm": "computes its attention itself",
    "gemma2": "softcap",
    "gpt_oss": "s_aux",
}


def tiny(name: str, kind):
    """A model of this type with every size that its configuration names made small."""
    config = AutoConfig.for_model(name)
    for size, names in SIZES.items():
        for field in names:
            if isinstance(getattr(config, field, None), int):
                with contextlib.suppress(AttributeError):  # some are worked out from others
                    setattr(config, field, size)
    if hasattr(config, "num_key_value_heads"):
        config.num_key_value_heads = 2
    for field, value in (
        ("layer_types", None),
        ("eos_token_id", 2),
        ("bos_token_id", 0),
        ("decoder_start_token_id", 0),
    ):
        if hasattr(config, field):
            setattr(config, field, value if field != "layer_types" else list(config.layer_types or [])[:2])
    torch.manual_seed(0)
    model = kind.from_config(config)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.3)
    if model.can_generate():
        model.generation_config.decoder_start_token_id = model.generation_config.decoder_start_token_id or 0
    return model.eval()


def masks_of(model, share: float, length: int) -> list[PruneMask]:
    generator, masks = torch.Generator().manual_seed(1), []
    for site, stack in find_stacks(model).items():
        pruned = torch.rand(stack.layers, stack.heads, length, length, generator=generator) < share
        masks.append(PruneMask.from_cells(pruned, site=site, causal=stack.causal))
    return masks


def batch_of(pairs: bool) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 60, (2, LENGTH), generator=torch.Generator().manual_seed(2))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return batch | ({"decoder_input_ids": ids.flip(1)} if pairs else {})


CASES = [
    *((name, AutoModelForCausalLM) for name in CAUSAL),
    *((name, AutoModelForMaskedLM) for name in MASKED),
    *((name, AutoModelForSeq2SeqLM) for name in PAIRS),
]


@pytest.mark.parametrize(("name", "kind"), CASES, ids=[name for name, _ in CASES])
@pytest.mark.filterwarnings("ignore")
def test_it_is_supported_or_refused_and_never_wrong(name, kind):
    pairs, model = kind is AutoModelForSeq2SeqLM, tiny(name, kind)
    batch = batch_of(pairs)
    with torch.no_grad():
        dense = model(**batch).logits
    if name in REFUSED:
        with pytest.raises(InputError, match=REFUSED[name]), torch.no_grad():
            prune_model(model, masks_of(model, 0.5, LENGTH))(**batch)
        return
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", DenseAttentionWarning)
        none = prune_model(model, masks_of(model, 0.0, LENGTH + NEW))(**batch).logits
        torch.testing.assert_close(none, dense, atol=1e-4, rtol=1e-4)
        masks = masks_of(model, 0.5, LENGTH + NEW)
        found = prune_model(model, masks)(**batch).logits
        assert not torch.allclose(found, dense, atol=1e-3)
        readable = prune_model(model, masks, backend="reference")(**batch).logits
        torch.testing.assert_close(found, readable, atol=1e-4, rtol=1e-4)
        if kind is not AutoModelForMaskedLM:
            check_generation(prune_model(model, masks), batch, pairs)


def check_generation(model, batch: dict[str, torch.Tensor], pairs: bool) -> None:
    options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "output_logits": True, "num_beams": 1}
    prompt = {name: batch[name] for name in ("input_ids", "attention_mask")}
    said = model.generate(**prompt, **options, return_dict_in_generate=True)
    if pairs:
        whole = model(**prompt, decoder_input_ids=said.sequences).logits[:, -NEW - 1 : -1]
    else:
        whole = model(input_ids=said.sequences, attention_mask=torch.ones_like(said.sequences)).logits[:, -NEW - 1 : -1]
    torch.testing.assert_close(torch.stack(said.logits, 1), whole, atol=1e-4, rtol=1e-4)
