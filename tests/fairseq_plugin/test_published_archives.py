"""Published archives of the WMT models, in the form of 2018: model.pt, dict.en.txt, dict.de.txt, bpecodes."""

import argparse
import collections
import pickle
import re
import shutil

import fairseq.meters
import numpy as np
import pytest
import torch

import compute_attn_score
from attention_pruning import AttentionPattern, InputError
from plugin.checkpoint import load_model, read_checkpoint
from tiny_translation import HEADS, LAYERS, build

# What fairseq's namespace said then: no configuration, booleans as text, names that have changed since.
THEN = {
    **dict(adam_betas="(0.9, 0.98)", adam_eps=1e-08, adaptive_softmax_cutoff=None, attention_dropout=0.1),
    **dict(arch="transformer_wmt_en_de", clip_norm=0.0, criterion="label_smoothed_cross_entropy", dropout=0.1),
    **dict(data="/private/home/someone/data-bin/wmt14_en_de_joined_dict", ddp_backend="c10d", device_id=0, fp16=True),
    **dict(distributed_backend="nccl", distributed_init_method="tcp://node:10218", distributed_port=10218),
    **dict(distributed_rank=0, distributed_world_size=128, fp16_init_scale=128, keep_interval_updates=-1),
    **dict(label_smoothing=0.1, left_pad_source="True", left_pad_target="False", log_format="simple", log_interval=100),
    **dict(lr=[0.001], lr_scheduler="inverse_sqrt", lr_shrink=0.1, max_epoch=70, max_sentences=None, max_tokens=3584),
    **dict(max_sentences_valid=None, max_source_positions=1024, max_target_positions=1024, max_update=0, min_lr=1e-09),
    **dict(min_loss_scale=0.0001, momentum=0.99, no_epoch_checkpoints=False, no_progress_bar=True, no_save=False),
    **dict(no_token_positional_embeddings=False, optimizer="adam", optimizer_overrides="{}", raw_text=False),
    **dict(relu_dropout=0.0, reset_lr_scheduler=False, reset_optimizer=False, restore_file="checkpoint_last.pt"),
    **dict(save_dir="/checkpoint/someone", save_interval=1, save_interval_updates=0, seed=2, sentence_avg=False),
    **dict(
        share_all_embeddings=False, share_decoder_input_output_embed=False, skip_invalid_size_inputs_valid_test=False
    ),
    **dict(source_lang="xx", target_lang="yy", task="translation", train_subset="train", update_freq=[1.0]),
    **dict(upsample_primary=1, valid_subset="valid", validate_interval=1, warmup_init_lr=1e-07, warmup_updates=4000),
    **dict(weight_decay=0.0),
}


class OldMeters:
    """Pickle fairseq's meters under the name that their module had."""

    def __enter__(self):
        self.classes = [fairseq.meters.AverageMeter, fairseq.meters.TimeMeter, fairseq.meters.StopwatchMeter]
        self.module = self.classes[0].__module__
        for each in self.classes:
            each.__module__ = "fairseq.meters"

    def __exit__(self, *exception):
        for each in self.classes:
            each.__module__ = self.module


def names_of_then(weights):
    """One matrix for queries, keys and values of an attention, numbered norms in the encoder."""
    old = collections.OrderedDict()
    for name, tensor in weights.items():
        if re.fullmatch(r"encoder\.layers\.\d+\.(in|out)_proj_.*|.*version|.*layers\.\d+\.[fl].*_(weight|bias)", name):
            continue
        if match := re.fullmatch(r"(.*attn)\.q_proj\.(weight|bias)", name):
            parts = [weights[f"{match[1]}.{part}_proj.{match[2]}"] for part in "qkv"]
            old[f"{match[1]}.in_proj_{match[2]}"] = torch.cat(parts)
        elif not re.search(r"attn\.[kv]_proj", name):
            name = re.sub(r"(encoder\.layers\.\d+)\.self_attn_layer_norm", r"\1.layer_norms.0", name)
            old[re.sub(r"(encoder\.layers\.\d+)\.final_layer_norm", r"\1.layer_norms.1", name)] = tensor
    return old


@pytest.fixture
def archive(task, data, tmp_path):
    """Half the precision, no zip file, meters as objects, and the model they say is at hand: folder and model."""
    sizes = {"embed_dim": 16, "ffn_embed_dim": 16, "layers": LAYERS, "attention_heads": HEADS}
    more = {f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in sizes.items()}
    more |= {f"{side}_normalize_before": False for side in ("encoder", "decoder")}
    more |= {f"{side}_learned_pos": False for side in ("encoder", "decoder")}
    more |= {f"{side}_embed_path": None for side in ("encoder", "decoder")}
    model = build(task, arch="transformer_tiny").half()
    weights = names_of_then(model.state_dict())
    meters = collections.OrderedDict(train_loss=fairseq.meters.AverageMeter(), wall=fairseq.meters.TimeMeter())
    meters["train_wall"] = fairseq.meters.StopwatchMeter()
    meters["train_loss"].update(np.float64(2.5))
    state = {
        "args": argparse.Namespace(**THEN | more),
        "model": weights,
        "optimizer_history": [
            {
                "criterion_name": "LabelSmoothedCrossEntropyCriterion",
                "optimizer_name": "FP16Optimizer",
                "best_loss": None,
            }
            | {"lr_scheduler_state": {"best": None}, "num_updates": 100}
        ],
        "extra_state": {"epoch": 70, "val_loss": 3.9, "batch_offset": 0, "train_meters": meters},
        "last_optimizer_state": None,
    }
    folder = tmp_path / "wmt14.en-de.joined-dict.transformer"
    folder.mkdir()
    with OldMeters():
        torch.save(state, folder / "model.pt", _use_new_zipfile_serialization=False)
    for language in ("xx", "yy"):
        shutil.copy(data / f"dict.{language}.txt", folder)
    (folder / "bpecodes").write_text("#version: 0.2\ne n\n")
    return folder, model


def test_its_patterns_are_averaged_as_the_readme_says(archive, data, tmp_path):
    folder, _ = archive
    flags = ["--using_old_model", "--dataset_name", str(data), "--all", "--out", str(tmp_path / "out")]
    compute_attn_score.main(["--path", str(folder), "--fn", "model.pt", *flags])
    for name in ("self-enc", "self-dec", "enc-dec"):
        pattern = AttentionPattern.load(tmp_path / "out" / f"{name}.safetensors")
        assert (pattern.layers, pattern.heads) == (LAYERS, HEADS) and pattern.metadata["sequences"] == 160


def test_its_weights_are_those_in_the_file(archive, data):
    folder, model = archive
    loaded = load_model(folder / "model.pt", data=str(data)).model.state_dict()
    compared = 0
    for name, tensor in model.state_dict().items():
        if re.search(r"embed_tokens|attn|fc\d\.|norm|output_projection", name):
            assert torch.equal(loaded[name], tensor.float()), name
            compared += 1
    assert compared > 16 * LAYERS


def test_nothing_in_it_may_run_code(archive, tmp_path):
    folder, _ = archive

    class Runs:
        def __reduce__(self):
            return print, ("this must not be printed",)

    state = read_checkpoint(folder / "model.pt")
    torch.save(state | {"extra_state": Runs()}, tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match="found objects that might run code; if you trust it"):
        read_checkpoint(tmp_path / "model.pt")
    with pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "model.pt")


def test_it_needs_data_that_were_binarised_with_its_dictionaries(archive):
    folder, _ = archive
    with pytest.raises(InputError, match="expected a checkpoint whose model and data are at hand, found"):
        load_model(folder / "model.pt")
