"""Bad input to run_glue.py and run_squad.py: one line that says what is wrong, and nothing written."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import BartConfig, BartForSequenceClassification

from attention_pruning import AttentionPattern, InputError
from attention_pruning.huggingface import prune_model
from attention_pruning.make import from_pattern
from pruning import PruningArguments, apply_pruning
from tiny_bert import LENGTH, random_pattern, save_model

GOOD = "GOOD"
PRUNE = {"do_train": True, "prune": True, "attn_path": GOOD, "tau": 0.5}
SAVE = {"save_attention_patterns": True, "attn_path": "new.safetensors"}

FLAGS = [
    ({}, "--do_train, --do_eval, --do_predict or --save_attention_patterns, found none"),
    ({"do_eval": True, "output_dir": None}, "output_dir"),
    ({"do_eval": True, "taw": 0.5}, "found --taw"),
    ({"do_eval": True, "max_seq_len": 8}, "found --max_seq_len"),  # no abbreviations
    ({"do_train": True, "max_steps": "many"}, "--max-steps: invalid int value: 'many'"),
    ({"do_train": True, "load_best_model_at_end": True, "save_strategy": "steps"}, "that transformers accepts"),
    ({"do_eval": True, "label": "colour=red"}, "--label: expected KEY=VALUE"),
    ({"do_eval": True, "threads": -1}, "--threads: expected 0"),
    ({"do_train": True, "max_train_samples": 0}, "--max_train_samples: expected at least 1, found 0"),
    ({"do_eval": True, "prune": True}, "--prune: expected --attn_path FILE with it, found none"),
    ({"do_eval": True, "save_attention_patterns": True}, "--save_attention_patterns: expected --attn_path FILE"),
    ({"do_eval": True, "attn_path": GOOD}, "--attn_path: expected --prune or --save_attention_patterns with it"),
    ({"do_eval": True, "tau": 0.5}, "--tau: expected --prune with it, found none"),
    ({"do_eval": True, "random_prune": True}, "--random_prune: expected --prune with it, found none"),
    ({**SAVE, "block_size": 4}, "--block_size: expected --prune with it, found none"),
    ({**PRUNE, "save_attention_patterns": True}, "--prune: expected a run of its own, found --save_attention_patterns"),
    ({**PRUNE, "tau": None}, "expected a tau, since this is a pattern and not yet a mask, found none"),
    ({**PRUNE, "tau": 90}, "0.9"),
    ({**PRUNE, "tau": "90%"}, "0.9"),
    ({**PRUNE, "rule": "best"}, "invalid choice: 'best'"),
    ({**PRUNE, "attn_path": "nothing.safetensors"}, "nothing.safetensors: expected"),
    ({**PRUNE, "pad_to_max_length": "false"}, "--pad_to_max_length: expected true with --prune, found false"),
    ({**SAVE, "pad_to_max_length": "false"}, "--pad_to_max_length: expected true with --save_attention_patterns"),
    ({**PRUNE, "max_seq_length": LENGTH + 1}, f"expected at least {LENGTH + 1} positions, as --max_seq_length says"),
    ({**PRUNE, "max_pattern_samples": 3}, "--max_pattern_samples: expected --save_attention_patterns with it"),
    ({**SAVE, "max_pattern_samples": 0}, "--max_pattern_samples: expected at least 1, found 0"),
    ({**SAVE, "attn_path": "pattern.pt"}, "--attn_path: expected a name in .safetensors or .npy, found pattern.pt"),
    ({"do_eval": True, "max_seq_length": 65}, "--max_seq_length: expected 5 to 64, what the tokenizer"),
    ({"do_eval": True, "max_seq_length": 3}, "--max_seq_length: expected 5 to 64, what the tokenizer"),
    ({"do_eval": True, "model_name_or_path": "no/such/folder/here"}, "expected a tokenizer that transformers can load"),
    ({"do_train": True, "resume_from_checkpoint": "nowhere"}, "nowhere: expected a whole checkpoint to resume from"),
]


@pytest.mark.parametrize(("changes", "message"), FLAGS, ids=[str(number) for number in range(len(FLAGS))])
def test_bad_flags(refused, pattern_file, monkeypatch, changes, message):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    changes = {name: pattern_file if value == GOOD else value for name, value in changes.items()}
    assert message in refused("glue", **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_eval": True, "task_name": "SQuAD"}, "task: expected one of CoLA"),
        ({"do_eval": True, "task_name": "RTE"}, "RTE"),
        ({"do_eval": True, "data_dir": "no-folder"}, "no-folder"),
    ],
)
def test_data_that_is_not_there(refused, changes, message):
    assert message in refused("glue", **changes)


def test_a_split_that_is_not_there(refused, data_dir, tmp_path):
    (tmp_path / "MRPC").mkdir()
    (tmp_path / "MRPC" / "dev.tsv").write_text((data_dir / "glue" / "MRPC" / "dev.tsv").read_text())
    message = refused("glue", do_train=True, data_dir=tmp_path)
    assert message == "--do_train: expected a split train in the data, found validation"


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (random_pattern(layers=3), "expected layers 2, that of the model, found 3"),
        (random_pattern(heads=4), "expected heads 2, that of the model, found 4"),
        (AttentionPattern(torch.eye(LENGTH).expand(2, 2, -1, -1), torch.eye(LENGTH), "self", causal=True), "causal"),
        (AttentionPattern(torch.eye(LENGTH).expand(2, 2, -1, -1), torch.eye(LENGTH), "enc-self"), "site self"),
    ],
)
def test_a_pattern_of_another_model(refused, tmp_path, pattern, message):
    pattern.save(tmp_path / "other.safetensors")
    found = refused("glue", **PRUNE | {"attn_path": tmp_path / "other.safetensors"})
    assert message in found and "other.safetensors" in found


def test_a_file_that_is_no_pattern(refused, tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"not one")
    assert "expected a whole safetensors file" in refused(
        "glue", **PRUNE | {"attn_path": tmp_path / "broken.safetensors"}
    )


def test_a_tau_that_contradicts_a_mask(refused, run, tmp_path, pattern_file):
    folder = run("glue", "pruned", do_eval=True, do_train=True, prune=True, attn_path=pattern_file, tau=0.5)
    mask = folder / "prune_mask.self.safetensors"
    assert "expected tau 0.4, as given, found 0.5" in refused("glue", **PRUNE | {"attn_path": mask, "tau": 0.4})


def test_a_model_with_fewer_positions(refused, tmp_path):
    model = save_model(tmp_path / "short", positions=20)
    message = refused("glue", do_eval=True, model_name_or_path=model, max_seq_length=24)
    assert message.startswith("--max_seq_length: expected at most 20, the positions of ")


def test_a_tokenizer_that_cannot_pad(refused, tmp_path):
    model = save_model(tmp_path / "unpadded")
    settings = json.loads((model / "tokenizer_config.json").read_text())
    (model / "tokenizer_config.json").write_text(json.dumps(settings | {"pad_token": None}))
    assert "expected a tokenizer that can pad" in refused("glue", do_eval=True, model_name_or_path=model)


def test_a_model_with_another_head(refused, tmp_path):
    model = save_model(tmp_path / "three", num_labels=3)
    assert "--ignore_mismatched_sizes" in refused("glue", do_eval=True, model_name_or_path=model)


def test_a_folder_that_lost_its_mask_file_is_not_dense(refused, run, pattern_file):
    folder = run("glue", "pruned", do_train=True, prune=True, attn_path=pattern_file, tau=0.5)
    (folder / "prune_mask.self.safetensors").unlink()
    message = refused("glue", do_eval=True, model_name_or_path=folder)
    assert "expected prune_mask.self.safetensors, named in its config.json" in message


def test_a_model_with_several_stacks_of_attention_is_refused(pattern_file):
    sizes = ("layers", "attention_heads", "ffn_dim")
    shape = {f"{part}_{name}": 2 for part in ("encoder", "decoder") for name in sizes}
    model = BartForSequenceClassification(BartConfig(vocab_size=10, d_model=8, max_position_embeddings=32, **shape))
    with pytest.raises(InputError, match="expected a model with one stack of attention, found enc-self, dec-self"):
        apply_pruning(model, PruningArguments(prune=True, attn_path=str(pattern_file), tau="0.5"), LENGTH)
    mask = from_pattern(AttentionPattern(torch.ones(2, 2, LENGTH, LENGTH), torch.ones(LENGTH, LENGTH), "enc-self"), 0.5)
    with pytest.raises(InputError, match="expected a model with one stack of attention"):
        apply_pruning(prune_model(model, mask), PruningArguments(), LENGTH)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"do_eval": True, "do_predict": True}, "--do_predict: expected --do_eval"),
        ({"do_eval": True, "doc_stride": 19}, "--doc_stride: expected 0 to 18"),
        ({"do_eval": True, "max_query_length": 30}, "--doc_stride: expected"),
        ({"do_eval": True, "version_2_with_negative": True}, "train-v2.0.json"),
        ({**PRUNE}, "expected at least 32 positions, as --max_seq_length says, found 16"),
        ({"do_eval": True, "n_best_size": 0}, "--n_best_size: expected at least 1, found 0"),
    ],
)
def test_bad_flags_of_squad(refused, pattern_file, changes, message):
    changes = {name: pattern_file if value == GOOD else value for name, value in changes.items()}
    assert message in refused("squad", **changes)


@pytest.mark.parametrize("script", ["glue", "squad"])
def test_a_model_spread_over_processes_is_refused(script, refused, monkeypatch):
    expected = "expected the whole model in every process, as torchrun starts them, found "
    # Where DeepSpeed is not installed transformers says so first.
    for flags, start in (({"fsdp": "full_shard"}, f"--fsdp: {expected}"), ({"deepspeed": "nothing.json"}, "")):
        with monkeypatch.context() as patch:
            patch.setenv("ACCELERATE_USE_FSDP", "false")  # which transformers sets
            message = refused(script, do_train=True, **flags)
        assert message.startswith(start) and next(iter(flags)) in message.lower()
    with monkeypatch.context() as patch:
        patch.setenv("ACCELERATE_USE_FSDP", "true")
        assert refused(script, do_train=True) == f"ACCELERATE_USE_FSDP: {expected}FSDP"
