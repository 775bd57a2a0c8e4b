"""Laws of train.py, run in this process on a text of a few hundred words."""

from __future__ import annotations

import math

import pytest
import torch

import evaluation
import train
from attention_pruning import InputError, PruneMask
from attention_pruning.make import from_pattern
from data_utils import LMOrderedIterator
from mem_transformer import MemTransformerLM, ModelConfig
from model_file import load_model
from reproduction.data.language.corpus import Corpus
from schedules import learning_rate
from tiny_xl import LENGTHS, SHAPE, assert_same_model, flags, random_pattern, read_json, read_tensors, training_flags
from train_flags import fill_cutoffs

DROPOUT = {"dropout": 0.3, "dropatt": 0.2}


# -- what is computed --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"adaptive": True, "cutoffs": [5, 12], "div_val": 2, "scheduler": "inv_sqrt", "warmup_step": 4},
        {"optim": "sgd", "mom": 0.9, "scheduler": "linear", "eta_min": 0.001, "pre_lnorm": True},
        {"optim": "adagrad", "scheduler": "constant", "clip": 0, "same_length": True, "not_tied": True},
        {"clamp_len": 3, "mem_len": 0, "d_embed": 8, "init": "uniform"},
        {"untie_r": True, "d_embed": 8, "adaptive": True, "cutoffs": [5], "tie_projs": "all"},
    ],
)
def test_training_is_a_plain_loop(run_train, words, changes):
    """Weights equal those of a loop written out here, over more than one pass through the text."""
    folder, status = run_train("run", **changes, max_step=40, eval_interval=40)
    assert status is None
    args = train.parser().parse_args(training_flags(words, folder, **changes, max_step=40))
    corpus = Corpus.load(words)
    same = (*SHAPE, *LENGTHS, "d_embed", "untie_r", "cutoffs", "div_val", "pre_lnorm", "same_length", "clamp_len")
    ties = [True] * (len(args.cutoffs) + 1) if args.tie_projs == "all" else []
    shape = {name: getattr(args, name) for name in same}
    config = ModelConfig(len(corpus.vocabulary), tied=not args.not_tied, tie_projs=ties, **shape)
    torch.manual_seed(args.seed)
    model = MemTransformerLM(config)
    model.initialize(args.init)
    optimizer = {
        "adam": lambda w: torch.optim.Adam(w, fused=True),
        "sgd": lambda w: torch.optim.SGD(w, momentum=args.mom),
        "adagrad": lambda w: torch.optim.Adagrad(w),
    }[args.optim](model.parameters())
    ids = corpus.split("train")
    rows = ids[: ids.numel() // 4 * 4].view(4, -1)
    starts = list(range(0, rows.size(1) - 1, 4))
    assert len(starts) < 40, "the text is longer than the training: its second pass is not tested"
    model.train()
    memory = None
    for step in range(40):
        start = starts[step % len(starts)]
        memory = None if start == 0 else memory
        end = min(start + 4, rows.size(1) - 1)
        nll, memory = model(rows[:, start:end], rows[:, start + 1 : end + 1], memory)
        optimizer.zero_grad()
        nll.mean().backward()
        if args.clip:
            torch.nn.utils.clip_grad_norm_(model.parameters(), args.clip)
        schedule = {n: getattr(args, n) for n in ("scheduler", "lr", "warmup_step", "max_step", "eta_min")}
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step + 1, **schedule)
        optimizer.step()
    for name, weight in read_tensors(folder / "model.safetensors").items():
        torch.testing.assert_close(weight, model.state_dict()[name], atol=1e-6, rtol=1e-5, msg=lambda m, n=name: n + m)


def test_it_learns(run_train, words):
    """After three passes it predicts better than the best guess that ignores the context."""
    folder, _ = run_train("run", max_step=100, eval_interval=50, clip=1.0)
    corpus = Corpus.load(words)
    counts = torch.bincount(corpus.split("train"), minlength=len(corpus.vocabulary)).double()
    unigram = -(counts / counts.sum()).clamp(min=1e-3).log()[corpus.split("valid")].mean()
    assert read_json(folder / "run.json")["valid_nll"] < unigram - 0.3


def test_the_model_file_is_the_best_of_the_validations(run_train, words, capsys):
    """A learning rate that ruins the model: what is kept is from before."""
    folder, _ = run_train("run", max_step=40, eval_interval=5, lr=0.1, scheduler="constant", clip=0)
    validations = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| valid")]
    losses = [float(line.split("loss ")[1].split()[0]) for line in validations]
    assert len(losses) == 8 and losses.index(min(losses)) < 7, "the last validation was the best: nothing is tested"
    loaded = load_model(folder / "model.safetensors")
    assert loaded.info["step"] == 5 * (1 + losses.index(min(losses)))
    iterator = LMOrderedIterator(Corpus.load(words).split("valid"), 3, 4)
    nll = evaluation.evaluate(loaded.model, iterator, torch.device("cpu"))["nll"]
    assert nll == read_json(folder / "run.json")["valid_nll"] == pytest.approx(min(losses), abs=1e-4)


# -- what makes no difference ------------------------------------------------------------------------------------------


def test_pruning_nothing_is_the_dense_training_bit_for_bit(run_train, pattern_file):
    dense, _ = run_train("dense", **DROPOUT)
    nothing, _ = run_train("nothing", **DROPOUT, fn=pattern_file, th=0)
    assert_same_model(dense, nothing)
    assert read_json(nothing / "run.json")["mask"]["effective_sparsity"] == 0.0
    assert read_json(dense / "run.json")["mask"] is None


def test_a_seed_is_reproducible(run_train, pattern_file):
    one, again, other = (
        run_train(name, **DROPOUT, seed=seed, fn=pattern_file, th=0.6)[0]
        for name, seed in (("one", 5), ("again", 5), ("other", 6))
    )
    assert_same_model(one, again)
    with pytest.raises(AssertionError):
        assert_same_model(one, other)


@pytest.mark.parametrize("chunks", [2, 4])
def test_parts_of_a_batch_add_up_to_it(run_train, pattern_file, chunks):
    plain = {"fn": pattern_file, "th": 0.6, "optim": "sgd", "clip": 0, "lr": 0.5}  # the gradient's size shows
    whole, _ = run_train("whole", **plain)
    parts, _ = run_train("parts", **plain, batch_chunk=chunks)
    assert_same_model(whole, parts, atol=1e-5, rtol=0)


def test_progress_intervals_change_nothing(run_train):
    often, _ = run_train("often", **DROPOUT, log_interval=1, checkpoint_interval=1)
    seldom, _ = run_train("seldom", **DROPOUT, log_interval=100, checkpoint_interval=100)
    assert_same_model(often, seldom)


# -- pruning -----------------------------------------------------------------------------------------------------------


def test_a_pruned_model_carries_the_mask_that_was_asked_for(run_train, pattern_file):
    folder, _ = run_train("run", fn=pattern_file, th=0.8, rule="allowed", scope="row", row_floor="none")
    mask = PruneMask.load(folder / "mask.safetensors")
    expected = from_pattern(random_pattern(), 0.8, rule="allowed", scope="row", row_floor="none", crop=False)
    assert mask.fingerprint == expected.fingerprint
    loaded = load_model(folder / "model.safetensors")
    assert torch.equal(loaded.model.pruned, torch.stack([mask.cells(layer) for layer in range(mask.layers)]))
    described = loaded.info["mask"]
    assert described["fingerprint"] == mask.fingerprint
    assert described["effective_sparsity"] == mask.effective_sparsity > 0.5
    assert described["block_sparsity"] == mask.block_sparsity(16)
    assert {name: described[name] for name in ("tau", "rule", "scope", "row_floor", "kind", "block_size")} == {
        "tau": 0.8,
        "rule": "allowed",
        "scope": "row",
        "row_floor": "none",
        "kind": "data",
        "block_size": 1,
    }


def test_the_percentile_is_that_of_the_whole_array(run_train, pattern_file):
    """The paper's rule for Transformer-XL: the zeros of the future count as cells."""
    folder, _ = run_train("run", fn=pattern_file, th=0.8)
    mask = PruneMask.load(folder / "mask.safetensors")
    assert mask.metadata["crop"] is False
    # 6 of 40 cells of a 4 x 10 pattern are the future: 0.8 * 40 = 32 are pruned, 26 of the 34 visible ones
    assert mask.effective_sparsity == pytest.approx(26 / 34, abs=0.02)


def test_a_mask_file_trains_as_the_pattern_it_was_made_from(run_train, pattern_file, tmp_path):
    mask = from_pattern(random_pattern(), 0.8, crop=False)
    mask.save(tmp_path / "mask.safetensors")
    of_pattern, _ = run_train("from_pattern", fn=pattern_file, th=0.8)
    from_mask, _ = run_train("from_mask", fn=tmp_path / "mask.safetensors")
    assert_same_model(of_pattern, from_mask)


def test_block_pruning(run_train, pattern_file):
    folder, _ = run_train("run", fn=pattern_file, th=0.7, block_size=2)
    mask = PruneMask.load(folder / "mask.safetensors")
    assert mask.block_size == 2 and 0 < mask.effective_sparsity < 1
    pruned = load_model(folder / "model.safetensors").model.pruned
    blocks = pruned.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2))
    assert (blocks.any(-1).any(-2) == blocks.all(-1).all(-2)).all()


def test_random_pruning(run_train, pattern_file):
    """As many cells per layer as by the pattern, the same for the same seed, and the file says what the model does."""
    masks, cells = {}, {}
    for name, options in {
        "data": {},
        "one": {"random_prune": True, "prune_seed": 4},
        "again": {"random_prune": True, "prune_seed": 4, "seed": 7},
        "other": {"random_prune": True, "prune_seed": 5},
    }.items():
        folder, _ = run_train(name, fn=pattern_file, th=0.7, max_step=2, **options)
        masks[name] = PruneMask.load(folder / "mask.safetensors")
        cells[name] = load_model(folder / "model.safetensors").model.pruned
        saved = torch.stack([masks[name].cells(layer) for layer in range(masks[name].layers)])
        assert torch.equal(saved, cells[name])
    assert torch.equal(cells["one"], cells["again"])
    assert not torch.equal(cells["one"], cells["other"]) and not torch.equal(cells["one"], cells["data"])
    for name in ("one", "other"):
        assert (masks[name].kind, masks["data"].kind) == ("random", "data")
        assert masks[name].layer_sparsity == masks["data"].layer_sparsity
    assert (masks["one"].seed, masks["other"].seed) == (4, 5)


# -- the rest ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pruning", [{}, {"th": 0.7}], ids=["dense", "pruned"])
def test_bfloat16_trains_and_validates_close_to_float32(run_train, pattern_file, pruning):
    pruning = pruning and {**pruning, "fn": pattern_file}
    single, _ = run_train("single", **DROPOUT, **pruning)
    half, _ = run_train("half", **DROPOUT, **pruning, mixed_precision="bf16")
    losses = [read_json(folder / "run.json")["valid_nll"] for folder in (single, half)]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], rel=0.02)
    tensors = read_tensors(half / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} <= {torch.float32, torch.bool}


def test_the_record_says_what_was_done(run_train, words, pattern_file):
    folder, _ = run_train("run", fn=pattern_file, th=0.7, seed=3)
    record, corpus = read_json(folder / "run.json"), Corpus.load(words)
    assert record["corpus"] == corpus.fingerprint and record["vocabulary"] == corpus.vocabulary_fingerprint
    assert record["seed"] == record["flags"]["seed"] == 3 and record["flags"]["th"] == "0.7"
    assert record["steps"] == 20 and record["seconds"] > 0 and record["versions"]["torch"] == torch.__version__
    assert record["mask"]["fingerprint"] == PruneMask.load(folder / "mask.safetensors").fingerprint
    assert sorted(file.name for file in folder.iterdir()) == [
        "checkpoint.pt",
        "mask.safetensors",
        "model.safetensors",
        "recipe.json",
        "run.json",
    ]


@pytest.mark.parametrize(
    "words_known, cutoffs",
    [(267_735, [20_000, 40_000, 200_000]), (793_471, [60_000, 100_000, 640_000]), (33_278, [2486, 4972, 24859])],
)
def test_an_adaptive_softmax_without_cutoffs_has_those_of_the_corpus(words_known, cutoffs):
    """As published, by the vocabulary; never one softmax over 267,735 words in silence."""
    args = train.parser().parse_args(flags(data="d", work_dir="w", adaptive=True))
    fill_cutoffs(args, words_known)
    assert args.cutoffs == cutoffs
    fill_cutoffs(chosen := train.parser().parse_args(flags(data="d", work_dir="w", adaptive=True, cutoffs=[9])), 100)
    assert chosen.cutoffs == [9]
    plain = train.parser().parse_args(flags(data="d", work_dir="w"))
    fill_cutoffs(plain, words_known)
    assert plain.cutoffs == []
    assert (args.tie_projs, chosen.tie_projs) == ("all_but_first", "all_but_first")
    billion = train.parser().parse_args(flags(data="d", work_dir="w", adaptive=True, dataset="lm1b"))
    fill_cutoffs(billion, 793_471)
    assert billion.tie_projs == "none"  # as published
    with pytest.raises(InputError, match="--adaptive: expected --cutoffs beside it for a vocabulary of 5 words"):
        fill_cutoffs(train.parser().parse_args(flags(data="d", work_dir="w", adaptive=True)), 5)


def test_the_log_tells_the_mean_loss_since_the_last_line(run_train, capsys):
    def losses(log_interval):
        run_train(f"every{log_interval}", log_interval=log_interval)
        lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| step")]
        return [float(line.split("loss ")[1].split()[0]) for line in lines]

    single, ten = losses(1), losses(10)
    assert len(single) == 20 and len(ten) == 2
    assert ten == pytest.approx([sum(single[:10]) / 10, sum(single[10:]) / 10], abs=2e-3)


def test_a_training_that_diverges_says_so(run_train, words, tmp_path, refused):
    argv = training_flags(words, tmp_path / "run", lr=1e30, clip=0, scheduler="constant", optim="sgd")
    message = refused(train.main, argv)
    assert "diverged" in message and "--lr" in message


def test_raw_text_trains_like_the_corpus_made_of_it(run_train, tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    for split in ("train", "valid", "test"):
        (raw / f"{split}.txt").write_text("a b c a d b a\n" * 30)
    folder, status = run_train("run", data=raw)
    assert status is None and math.isfinite(read_json(folder / "run.json")["valid_nll"])
