"""The flags of the published implementation: each has its row in docs/reproducing.md, and does what the row says."""

from __future__ import annotations

import math
import re
import shlex
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

import eval as evaluate_script  # the script's name is that of a builtin
import train
from attention_pruning import InputError
from data_utils import LMOrderedIterator
from evaluation import evaluate
from model_file import load_model
from reproduction.data.language.corpus import Corpus
from tiny_xl import SHAPE, flags, random_ids, random_pattern, read_json, read_tensors, tiny_model, training_flags
from train_flags import check
from upstream_flags import REFUSED

#: All flags of ``pytorch/train.py`` and ``pytorch/eval.py``, with a value where they take one.
UPSTREAM = {
    "train.py": """--data d --dataset wt103 --n_layer 2 --n_head 2 --d_head 2 --d_embed 2 --d_model 2 --d_inner 2
        --dropout 0.1 --dropatt 0.1 --init uniform --emb_init normal --init_range 0.2 --emb_init_range 0.01
        --init_std 0.1 --proj_init_std 0.1 --optim sgd --lr 1 --mom 0.1 --scheduler inv_sqrt --warmup_step 1
        --decay_rate 0.5
        --lr_min 0.0 --clip 1 --clip_nonemb --max_step 2 --batch_size 2 --batch_chunk 2 --tgt_len 2 --eval_tgt_len 2
        --ext_len 0 --mem_len 2 --not_tied --seed 2 --cuda --adaptive --div_val 2 --pre_lnorm --varlen --multi_gpu
        --log-interval 2 --eval-interval 2 --work_dir w --restart --restart_dir r --debug --same_length --attn_type 0
        --clamp_len 2 --eta_min 0.1 --gpu0_bsz 2 --max_eval_steps 2 --sample_softmax -1 --patience 0 --finetune_v2
        --finetune_v3 --fp16 --static-loss-scale 1 --dynamic-loss-scale""",
    "eval.py": """--data d --dataset wt103 --split all --batch_size 2 --tgt_len 2 --ext_len 0 --mem_len 2 --clamp_len 2
        --cuda --work_dir w --no_log --same_length""",
}
PARSERS = {"train.py": train.parser, "eval.py": evaluate_script.parser}
PAGE = (Path(__file__).parents[2] / "docs" / "reproducing.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in PAGE.partition("<!-- upstream flags -->")[2].partition("<!-- end upstream flags -->")[0].splitlines()
    if line.startswith("| `")
]
#: As published, run by run_wt103_base.sh; the folder of the data is what a user would change.
TRAIN = """--seed 1111 --cuda --data {data} --dataset wt103 --adaptive --log-interval 20 --n_layer 16 --d_model 410
    --n_head 10 --d_head 41 --d_inner 2100 --dropout 0.1 --dropatt 0.0 --optim adam --lr 0.00025 --warmup_step 0
    --max_step 200000 --tgt_len 150 --mem_len 150 --eval_tgt_len 150 --batch_size 60 --multi_gpu --gpu0_bsz 4"""
EVAL = "--cuda --data {data} --dataset wt103 --tgt_len 64 --mem_len 640 --clamp_len 400 --same_length --split test"


def names(text):
    return re.findall(r"--[a-z][\w-]*", text)


@pytest.mark.parametrize("script", UPSTREAM)
def test_every_published_flag_has_one_row(script):
    listed = [flag for flag_cell, scripts, _ in ROWS if script in scripts.split() for flag in names(flag_cell)]
    assert sorted(listed) == sorted(names(UPSTREAM[script]))


@pytest.mark.parametrize("spelling", ["published", "_", "-"])
@pytest.mark.parametrize("script", UPSTREAM)
def test_every_published_flag_is_known(script, spelling):
    words = shlex.split(UPSTREAM[script])
    if spelling != "published":
        words = ["--" + re.sub("[-_]", spelling, w[2:]) if w.startswith("--") else w for w in words]
    args = PARSERS[script]().parse_args(words)
    assert args.tgt_len == args.mem_len == args.clamp_len == 2 and args.same_length and args.device == "cuda"


def test_refused_are_those_that_the_table_says(tmp_path):
    """At their default they are taken, at another value refused with the reason."""
    refused = {
        flag[2:].replace("-", "_"): reason
        for cell, _, reason in ROWS
        if reason.startswith("refused")
        for flag in names(cell)
    }
    assert refused.keys() == REFUSED.keys()
    parse = train.parser().parse_args
    for name, (default, reason) in REFUSED.items():
        base = flags(data=tmp_path, work_dir=tmp_path, device="cpu")
        other = True if default is False else "uniform" if default == "normal" else default + 1
        with pytest.raises(InputError, match=f"^--{name}: expected {default}, as {reason}, found {other}$"):
            check(parse([*base, *flags(**{name: other})]))
        check(args := parse([*base, *flags(**{name: default})]))
        assert not hasattr(args, name)  # it is no part of a recipe


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scheduler": "dev_perf"}, "--scheduler: expected one that depends on the step alone, found dev_perf"),
        ({"dataset": "enwik8"}, "--dataset: expected a prepared corpus"),
        ({"dynamic_loss_scale": True}, "--dynamic_loss_scale: expected --fp16 beside it"),
        ({"fp16": True}, "--mixed_precision: expected no or bf16 on a CPU"),
        (
            {"eval_tgt_len": 11},
            "--eval_tgt_len: expected 1 or more, --tgt_len and --mem_len together at most, found 11",
        ),
        ({"eval_tgt_len": 0}, "--eval_tgt_len: expected 1 or more"),
        ({"tie_projs": "all"}, "--tie_projs: expected projections"),
        ({"work_dir": None}, "--work_dir: expected a folder for the run, found none"),
        ({"restart_dir": "nowhere"}, "nowhere/model.safetensors: expected a Transformer-XL model"),
    ],
    ids=str,
)
def test_what_makes_no_sense_here(change, message, tmp_path, refused):
    for split in ("train", "valid", "test"):
        (tmp_path / f"{split}.txt").write_text("a b c d\n" * 40)
    given = {"data": tmp_path, "work_dir": tmp_path / "run", **change}
    assert message in refused(train.main, training_flags(**given))
    assert not (tmp_path / "run").exists()


@pytest.fixture
def published(words, tmp_path, monkeypatch):
    """The published commands on the tiny corpus, with smaller sizes after them, as the script's own arguments are."""
    monkeypatch.chdir(tmp_path)
    after = {
        **SHAPE,
        "device": "cpu",
        "max_step": 3,
        "batch_size": 3,
        "eval_batch_size": 3,
        "tgt_len": 15,
        "mem_len": 15,
    }
    AcceleratorState._reset_state(True)

    def run(**changes):
        small = {**after, "eval_tgt_len": 15, "cutoffs": [9], "lr": 0.01, **changes}
        assert train.main([*shlex.split(TRAIN.format(data=words)), *flags(**small)]) is None
        AcceleratorState._reset_state(True)
        return tmp_path / "LM-TFM-wt103"

    return run


def test_the_published_commands_start_unchanged(published, words):
    """And the same command again is the same run, which is done."""
    folder = published()
    args = train.parser().parse_args(shlex.split(TRAIN.format(data=words)))
    assert (args.n_layer, args.d_head, args.log_interval, args.adaptive, args.cutoffs) == (16, 41, 20, True, [])
    before = (folder / "model.safetensors").read_bytes()
    published()
    assert (folder / "model.safetensors").read_bytes() == before
    assert read_json(folder / "run.json")["steps"] == 3
    out = folder / "metrics.json"
    evaluate_script.main(
        [*shlex.split(EVAL.format(data=words)), "--work_dir", str(folder), *flags(device="cpu", batch_size=1, out=out)]
    )
    assert read_json(out)["metrics"].keys() == {"test"}


def test_a_pruned_model_at_the_published_lengths_of_evaluation(words, published, tmp_path, refused):
    """Pruned at 15/15, evaluated at 64/640/400: refused, or nothing is pruned where the mask does not reach."""
    random_pattern(tgt_len=15, mem_len=15).save(tmp_path / "pattern.safetensors")
    folder = published(fn=tmp_path / "pattern.safetensors", th=0.8)
    command = [*shlex.split(EVAL.format(data=words)), "--work_dir", str(folder), *flags(device="cpu", batch_size=1)]
    assert "--beyond dense leaves the rest unpruned" in refused(evaluate_script.main, command)
    out = tmp_path / "m.json"
    evaluate_script.main([*command, *flags(beyond="dense", out=out)])
    cells = load_model(folder / "model.safetensors").model.pruned
    lengths = {"tgt_len": 64, "mem_len": 640, "clamp_len": 400, "same_length": True}
    model = load_model(folder / "model.safetensors", "dense", **lengths).model
    assert model.pruned.shape[2:] == (64, 704) and model.pruned.sum() == cells.sum()
    assert torch.equal(model.pruned[:, :, :15, 625:655], cells)
    text = LMOrderedIterator(Corpus.load(words).split("test"), 1, 64)
    found = read_json(out)
    nll = evaluate(model, text, torch.device("cpu"))["nll"]
    assert found["metrics"]["test"]["nll"] == nll
    model.set_pruned(None)
    assert evaluate(model, text, torch.device("cpu"))["nll"] != nll
    assert 0 < found["evaluated_sparsity"] < found["effective_sparsity"]


@pytest.mark.parametrize("same_length", [False, True])
@pytest.mark.parametrize("eval_tgt_len", [2, 7])
def test_a_validation_has_lengths_of_its_own(eval_tgt_len, same_length, run_train, words):
    """As published: as many keys as in training."""
    folder, _ = run_train("run", eval_tgt_len=eval_tgt_len, same_length=same_length)
    path = folder / "model.safetensors"
    model = load_model(path, tgt_len=eval_tgt_len, mem_len=10 - eval_tgt_len).model
    text = LMOrderedIterator(Corpus.load(words).split("valid"), 3, eval_tgt_len)
    expected = evaluate(model, text, torch.device("cpu"))["nll"]
    assert read_json(folder / "run.json")["valid_nll"] == expected
    assert load_model(path).model.config.mem_len == 6  # the model's own lengths are those of its training


def test_a_validation_beyond_the_mask(run_train, pattern_file, words, tmp_path, refused):
    pruned = {"fn": pattern_file, "th": 0.7, "eval_tgt_len": 2}
    message = refused(train.main, training_flags(words, tmp_path / "refused", **pruned))
    assert "segments of 4 tokens after 6 memory slots, found 2 after 8" in message
    folder, _ = run_train("dense", **pruned, beyond="dense")
    model = load_model(folder / "model.safetensors", tgt_len=2, mem_len=8).model
    text = LMOrderedIterator(Corpus.load(words).split("valid"), 3, 2)
    expected = evaluate(model, text, torch.device("cpu"))["nll"]
    assert read_json(folder / "run.json")["valid_nll"] == expected


def test_lengths_for_a_while_leave_nothing_behind():
    """Masks that were built at other lengths are not used again."""
    model, ids = tiny_model(same_length=True), random_ids(2, 12)
    targets = random_ids(2, 12, seed=5)

    def loss(model):
        return evaluate(model, [(ids[:, i : i + 4], targets[:, i : i + 4]) for i in (0, 4, 8)], torch.device("cpu"))[
            "nll"
        ]

    fresh = loss(tiny_model(same_length=True, mem_len=3))
    before = loss(model)
    with model.at_lengths(4, 3):
        assert loss(model) == fresh != before
    assert loss(model) == before


def test_a_training_starts_from_the_weights_of_another(trained, run_train, words, tmp_path, refused):
    """With a learning rate of nearly nothing they stay what they were; the run is another one than without."""
    source = trained["dense"]
    folder, _ = run_train("run", restart_dir=source, lr=1e-12, scheduler="constant", max_step=2)
    before, after = (read_tensors(path / "model.safetensors") for path in (source, folder))
    assert all(torch.allclose(before[name], after[name], atol=1e-9) for name in before)
    fingerprint = load_model(source / "model.safetensors").fingerprint
    assert read_json(folder / "run.json")["started_from"] == fingerprint
    assert read_json(folder / "recipe.json")["recipe"]["started_from"] == fingerprint
    assert math.isclose(
        read_json(folder / "run.json")["valid_nll"], read_json(source / "run.json")["valid_nll"], rel_tol=1e-6
    )
    run_train("run", restart=True, restart_dir=source, lr=1e-12, scheduler="constant", max_step=2)  # the same run
    given = training_flags(words, tmp_path / "run", lr=1e-12, scheduler="constant", max_step=2)
    assert "started_from" in refused(train.main, given)
    alone, _ = run_train("alone")
    assert run_train("alone", restart=True, restart_dir=alone)[1] is None
    other = training_flags(words, tmp_path / "other", restart_dir=source, d_inner=24)
    assert "expected a model with d_inner 24, found 20" in refused(train.main, other)


def test_weights_of_a_pruned_model_do_not_lose_their_mask_in_silence(
    trained, run_train, words, pattern_file, tmp_path, refused
):
    pruned = training_flags(words, tmp_path / "run", restart_dir=trained["pruned"])
    message = refused(train.main, pruned)
    assert message.startswith("--restart_dir: expected --fn beside the weights of a pruned model, found none")
    assert not (tmp_path / "run").exists()
    folder, _ = run_train("again", restart_dir=trained["pruned"], fn=pattern_file, th=0.9, max_step=1)
    assert read_json(folder / "run.json")["mask"]["effective_sparsity"] > 0.8
