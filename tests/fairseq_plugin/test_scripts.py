"""The scripts as a person runs them, each in a process of its own."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

import average_checkpoints
import compute_attn_score
import inspect_checkpoint
import launcher
import score_translations
from attention_pruning import AttentionPattern, InputError, PruneMask
from attention_pruning.make import from_pattern
from plugin.checkpoint import read_checkpoint
from tiny_translation import FAIRSEQ, as_arguments, error_of, prune_flags, run_script
from warm_python import python

pytestmark = pytest.mark.slow

SITES = ("enc-self", "dec-self", "enc-dec")
MODEL = [
    *("--arch", "ap_transformer_tiny", "--encoder-embed-dim", "16", "--encoder-ffn-embed-dim", "16"),
    *("--optimizer", "adam", "--lr", "0.01", "--max-tokens", "120", "--dropout", "0.1", "--attention-dropout", "0.1"),
    *(
        "--criterion",
        "label_smoothed_cross_entropy",
        "--log-format",
        "json",
        "--log-interval",
        "1",
        "--seed",
        "1",
        "--cpu",
    ),
    *("--no-epoch-checkpoints", "--max-update", "20"),
]


def losses(log):
    """Update -> loss, from fairseq's log."""
    lines = re.findall(r"\| train_inner \| (\{.*\})", log)
    return {int(line["num_updates"]): line["loss"] for line in map(json.loads, lines)}


def train(data, folder, *more, check=True):
    return run_script("train.py", data, "--save-dir", folder, *MODEL, *more, check=check)


def swap(arguments, old, new):
    return [new if word == old else word for word in arguments]


@pytest.fixture(scope="module")
def dense(data, tmp_path_factory):
    """A dense training of ours: its folder and log."""
    folder = tmp_path_factory.mktemp("dense")
    done = train(data, folder)
    return folder, done.stdout + done.stderr


@pytest.fixture(scope="module")
def stock(data, tmp_path_factory):
    """The same by the stock architecture, without the plug-in."""
    folder = tmp_path_factory.mktemp("stock")
    program = folder / "stock_train.py"
    program.write_text(
        f"import sys\nsys.path.insert(0, {str(FAIRSEQ)!r})\nimport shims\nshims.install()\n"
        "import fairseq_cli.train\nfairseq_cli.train.cli_main()\n"
    )
    arguments = swap(MODEL, "ap_transformer_tiny", "transformer_tiny")
    paths = os.pathsep.join([str(FAIRSEQ.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [python(), program, data, "--save-dir", folder, "--left-pad-source", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder, done.stdout + done.stderr


@pytest.fixture(scope="module")
def patterns(dense, tmp_path_factory):
    """Site -> pattern of the dense model."""
    folder = tmp_path_factory.mktemp("patterns")
    run_script("compute_attn_score.py", "--path", dense[0], "--all", "--out", folder, "--npy")
    return {"enc-self": folder / "self-enc.safetensors"} | {
        "dec-self": folder / "self-dec.safetensors",
        "enc-dec": folder / "enc-dec.safetensors",
    }


@pytest.fixture(scope="module")
def pruned(data, patterns, tmp_path_factory):
    """A pruned training: its folder and log."""
    folder = tmp_path_factory.mktemp("pruned")
    done = train(data, folder, *as_arguments(prune_flags(patterns, SITES, beyond="dense")))
    return folder, done.stdout + done.stderr


def test_dense_training_equals_stock_fairseq_for_20_updates(dense, stock):
    ours, theirs = losses(dense[1]), losses(stock[1])
    assert sorted(ours) == list(range(1, 21)) and ours == theirs
    for name in ("checkpoint_last.pt", "checkpoint_best.pt"):
        a, b = (torch.load(folder / name, weights_only=False)["model"] for folder, _ in (dense, stock))
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a if not key.endswith("_float_tensor"))


def test_checkpoints_exchange_both_ways(data, dense, stock, tmp_path):
    """Each continues from the other's as from its own."""
    more = swap(MODEL, "20", "24")
    logs = []
    for arch, folder in (("ap_transformer_tiny", stock[0]), ("transformer_tiny", dense[0])):
        flags = swap(more, "ap_transformer_tiny", arch)
        restore = ("--restore-file", folder / "checkpoint_last.pt")
        done = run_script("train.py", data, "--save-dir", tmp_path / arch, *flags, *restore)
        logs.append(losses(done.stdout + done.stderr))
    assert logs[0] == logs[1] and sorted(logs[0]) == [21, 22, 23, 24]


def test_an_old_model_gives_the_pattern_that_ours_gives(dense, stock, patterns, tmp_path):
    common = ("--attn_type", "self-dec", "--out", tmp_path)
    run_script("compute_attn_score.py", "--path", stock[0], "--using_old_model", *common)
    found, expected = (
        AttentionPattern.load(tmp_path / "self-dec.safetensors"),
        AttentionPattern.load(patterns["dec-self"]),
    )
    torch.testing.assert_close(found.average, expected.average, atol=1e-6, rtol=0)
    assert torch.equal(found.count, expected.count)
    assert found.metadata["sequences"] == 160 and found.metadata["data"] == "letters"
    for folder, flags, message in (
        (stock[0], [], "found one of stock fairseq: give --using_old_model"),
        (dense[0], ["--using_old_model"], "expected a checkpoint of stock fairseq for --using_old_model"),
    ):
        with pytest.raises(InputError, match=message):
            compute_attn_score.main(["--path", str(folder), "--attn_type", "self-dec", "--out", str(tmp_path), *flags])


def average_in_two(dense, out, *flags):
    prefix = [python(), "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = [FAIRSEQ / "compute_attn_score.py", "--path", dense[0], "--all", "--out", out, "--no-cuda", *flags]
    paths = os.pathsep.join(filter(None, [str(FAIRSEQ.parent), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        list(map(str, [*prefix, *script])), capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}
    )
    assert done.returncode == 0, done.stderr


def test_two_processes_average_what_one_does(dense, patterns, tmp_path):
    average_in_two(dense, tmp_path, "--max-tokens", "300")
    for file in patterns.values():
        found, expected = AttentionPattern.load(tmp_path / file.name), AttentionPattern.load(file)
        torch.testing.assert_close(found.average, expected.average, atol=1e-6, rtol=0)
        assert torch.equal(found.count, expected.count)
        assert found.metadata["sequences"] == 160 and found.metadata["dropped_sentences"] == 0
        assert found.metadata["precision"] == "float32"


def test_a_process_without_a_batch_adds_nothing(dense, patterns, tmp_path):
    """One batch for two processes, at all three sites."""
    flags = ("--max-batches", "1", "--max-tokens", "300")
    average_in_two(dense, tmp_path / "two", *flags)
    run_script("compute_attn_score.py", "--path", dense[0], "--all", "--out", tmp_path / "one", "--no-cuda", *flags)
    for file in patterns.values():
        found, expected = (AttentionPattern.load(tmp_path / name / file.name) for name in ("two", "one"))
        torch.testing.assert_close(found.average, expected.average, atol=1e-6, rtol=0)
        assert torch.equal(found.count, expected.count) and found.metadata == expected.metadata
        assert 0 < found.metadata["sequences"] < 160


def test_patterns_are_written_in_the_published_layout_too(patterns):
    from attention_pruning.files.load import load_pattern

    for site, file in patterns.items():
        published, own = load_pattern(file.with_suffix(".npy"), site=site), AttentionPattern.load(file)
        assert torch.equal(published.average, own.average)


def test_training_leaves_masks_and_record_and_its_checkpoint_the_same_masks(pruned, patterns):
    folder, _ = pruned
    state = torch.load(folder / "checkpoint_best.pt", weights_only=False)["model"]
    for site, module in (("enc-self", "encoder.layers.1.self_attn"), ("enc-dec", "decoder.layers.1.encoder_attn")):
        mask = PruneMask.load(folder / f"mask-{site}.safetensors")
        assert torch.equal(state[f"{module}.prune_mask"], mask.cells(1)) and mask.tau == 0.6
        expected = from_pattern(AttentionPattern.load(patterns[site]), 0.6, rule="allowed")
        assert mask.fingerprint == expected.fingerprint
    record = json.loads((folder / "run.json").read_text())
    assert record["script"] == "fairseq/train.py" and "--PRUNE_BOOL" in record["flags"]["arguments"]


def test_translate_and_score_without_any_pattern_file(data, raw, pruned, tmp_path):
    generated = tmp_path / "out" / "generate-test.txt"
    translate = ("--path", pruned[0] / "checkpoint_best.pt", "--beam", "4", "--cpu", "--results-path", tmp_path / "out")
    run_script("generate.py", data, *translate)
    scored = (
        "--generated",
        generated,
        "--references",
        raw / "test.yy",
        "--checkpoint",
        pruned[0] / "checkpoint_best.pt",
    )
    out = tmp_path / "metrics.json"
    run_script("score_translations.py", *scored, "--out", out, "--label", "variant=data", "--label", "tau=0.6")
    metrics = json.loads(out.read_text())
    assert (
        metrics["variant"] == "data" and metrics["tau"] == 0.6 and set(metrics["metrics"]["test"]) >= {"bleu", "chrf"}
    )
    assert 0 < metrics["evaluated_sparsity"] < 1 and 0.5 < metrics["effective_sparsity"] <= 0.6
    assert "tok:13a" in json.loads((tmp_path / "metrics.run.json").read_text())["signatures"]["bleu"]
    assert (tmp_path / "out" / "run.json").is_file()

    # line by line, in batches whose sources have different lengths
    sources = (raw / "test.xx").read_text().splitlines()
    done = run_script(
        "interactive.py",
        data,
        *translate[:-2],
        "--buffer-size",
        "8",
        "--batch-size",
        "8",
        input="\n".join(sources) + "\n",
    )
    one_by_one = dict(re.findall(r"^D-(\d+)\t[^\t]*\t(.*)$", done.stdout, re.M))
    together = dict(re.findall(r"^D-(\d+)\t[^\t]*\t(.*)$", generated.read_text(), re.M))
    assert one_by_one == together and len(together) == len(sources)


def test_random_masks_are_the_same_after_the_training(data, patterns, tmp_path):
    """Drawn once: training, validation and generation all use the masks of the checkpoint."""
    flags = prune_flags(patterns, ("enc-self",), RANDOM_PRUNE=True, prune_seed=7, beyond="dense")
    train(data, tmp_path, *swap(as_arguments(flags), "20", "3"), "--max-epoch", "1")
    mask = PruneMask.load(tmp_path / "mask-enc-self.safetensors")
    like = from_pattern(AttentionPattern.load(patterns["enc-self"]), 0.6, rule="allowed")
    assert mask.kind == "random" and mask.seed == 7 and mask.layer_sparsity == like.layer_sparsity
    state = torch.load(tmp_path / "checkpoint_best.pt", weights_only=False)["model"]
    assert torch.equal(state["encoder.layers.0.self_attn.prune_mask"], mask.cells(0))


def test_a_killed_training_resumes_as_if_nothing_had_happened(data, patterns, pruned, tmp_path):
    flags = [*as_arguments(prune_flags(patterns, SITES, beyond="dense")), "--save-interval-updates", "1"]
    flags += ["--keep-interval-updates", "1"]
    command = [sys.executable, str(FAIRSEQ / "train.py"), str(data), "--save-dir", str(tmp_path), *MODEL, *flags]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(FAIRSEQ.parent), os.environ.get("PYTHONPATH", "")])}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "checkpoint_last.pt").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"
    done = train(data, tmp_path, *flags)
    resumed, uninterrupted = losses(done.stdout + done.stderr), losses(pruned[1])
    assert min(resumed) > 1 and max(resumed) == 20
    assert resumed == {update: loss for update, loss in uninterrupted.items() if update in resumed}


def translated(text):
    """The lines of each sentence, and the line that ends the file."""
    lines = text.splitlines()
    found = [line for line in lines if re.match(r"[STHDP]-\d+\t", line)]
    return sorted(found), [line for line in lines if line.startswith("Generate ")]


@pytest.mark.parametrize("processes", [2, 5])  # of which the last has no batch
def test_processes_that_share_a_translation_write_what_one_writes(data, pruned, tmp_path, processes):
    """To the last digit of every score, if batches are the same: with 8 sentences a batch there are three of 24."""
    flags = ("--path", pruned[0] / "checkpoint_best.pt", "--cpu", "--beam", "3", "--batch-size", "8")
    one = run_script("generate.py", data, *flags)
    out = tmp_path / "out"
    run_script("generate.py", data, *flags, "--distributed-world-size", processes, "--results-path", out)
    text = (out / "generate-test.txt").read_text()
    assert translated(text) == translated(one.stdout)
    assert len(translated(text)[0]) == 24 * 5 and len(translated(text)[1]) == 1
    numbers = [int(line[2:].split("\t")[0]) for line in text.splitlines() if line.startswith("H-")]
    assert numbers == list(range(24))
    assert sorted(file.name for file in out.iterdir()) == ["generate-test.txt", "run.json"]


def test_a_translation_that_torchrun_shares_is_printed_once(data, pruned, tmp_path):
    prefix = [python(), "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    flags = ["--path", pruned[0] / "checkpoint_best.pt", "--cpu", "--batch-size", "8", "--scoring", "sacrebleu"]
    done = subprocess.run(
        [*prefix, FAIRSEQ / "generate.py", data, *flags],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(FAIRSEQ.parent)},
    )
    assert done.returncode == 0, done.stderr
    one = run_script("generate.py", data, *flags)
    assert translated(done.stdout) == translated(one.stdout) and "BLEU = " in translated(one.stdout)[1][0]


@pytest.mark.parametrize("launch", ["own", "torchrun"])
def test_two_processes_on_a_cpu_agree_with_one(data, patterns, tmp_path, launch):
    flags = [*as_arguments(prune_flags(patterns, SITES, beyond="dense"))]
    flags += ["--attention-dropout", "0", "--dropout", "0", "--max-update", "6"]
    one = train(data, tmp_path / "one", *flags, "--update-freq", "2")
    if launch == "own":
        two = train(data, tmp_path / "two", *flags, "--distributed-world-size", "2")
    else:
        prefix = [python(), "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        backends = ["--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp"]
        two = subprocess.run(
            [*prefix, FAIRSEQ / "train.py", data, "--save-dir", tmp_path / "two", *MODEL, *flags, *backends],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(FAIRSEQ.parent)},
        )
        assert two.returncode == 0, two.stderr
    found, expected = losses(two.stdout + two.stderr), losses(one.stdout + one.stderr)
    assert sorted(found) == sorted(expected) == list(range(1, 7))
    assert all(float(found[update]) == pytest.approx(float(expected[update]), abs=2e-3) for update in found)


def test_averaged_checkpoints(data, pruned, dense, tmp_path):
    best, last = (pruned[0] / name for name in ("checkpoint_best.pt", "checkpoint_last.pt"))
    average_checkpoints.main(["--inputs", str(best), str(last), "--output", str(tmp_path / "average.pt")])
    states = [torch.load(file, weights_only=False)["model"] for file in (tmp_path / "average.pt", best, last)]
    for name, found in states[0].items():
        if name.endswith("prune_mask"):
            assert torch.equal(found, states[1][name])
        elif not name.endswith("_float_tensor"):
            torch.testing.assert_close(found, (states[1][name] + states[2][name]) / 2)
    run_script("generate.py", data, "--path", tmp_path / "average.pt", "--cpu")
    mixed = ["--inputs", str(best), str(dense[0] / "checkpoint_last.pt"), "--output", str(tmp_path / "mixed.pt")]
    with pytest.raises(InputError, match="found others by name or shape"):
        average_checkpoints.main(mixed)
    assert not (tmp_path / "mixed.pt").exists()


def test_bad_input_is_one_line_and_leaves_nothing(data, patterns, raw, tmp_path):
    flags = as_arguments(prune_flags(patterns, ("enc-self",), tau=90))
    assert "0.9" in error_of("train.py", data, "--save-dir", tmp_path / "x", *MODEL, *flags)
    assert not (tmp_path / "x").exists()
    assert "foreign" in error_of("generate.py", data, "--path", raw / "test.xx", "--cpu")


def test_what_is_no_checkpoint_is_refused(raw, dense, tmp_path):
    truncated, runs_code = tmp_path / "truncated.pt", tmp_path / "code.pt"
    truncated.write_bytes((dense[0] / "checkpoint_last.pt").read_bytes()[:2000])
    torch.save({"model": {}, "cfg": subprocess.Popen}, runs_code)
    torch.save({"weights": torch.zeros(2)}, tmp_path / "other.pt")
    for file, reason in (
        (raw / "test.xx", "found a foreign file"),
        (tmp_path / "none.pt", "found no such file"),
        (truncated, "found a damaged"),
        (runs_code, "objects that might run code"),
        (tmp_path / "other.pt", "found no model and configuration in it"),
    ):
        with pytest.raises(InputError, match=f"{re.escape(str(file))}: expected .*{reason}"):
            read_checkpoint(file)


def test_bad_flags_of_averaging_are_named(data, dense, tmp_path):
    gather = ["--path", str(dense[0]), "--all", "--out", str(tmp_path / "out")]
    for flags, message in (
        (["--dataset_name", "nowhere"], "--dataset_name: expected a folder"),
        (["--split", "best"], "expected binarised data with a split 'best'"),
        (["--use_entmax"], "expected entmax, as the flags say, found softmax"),
        (["--max-tokens", "2"], "--max-tokens: expected at least"),
        (["--dataset_name", str(tmp_path)], "expected a folder of binarised data"),
    ):
        with pytest.raises(InputError, match=message):
            compute_attn_score.main(gather + flags)
    assert not (tmp_path / "out").exists()


def test_flags_that_would_be_ignored_are_refused(dense, tmp_path):
    checkpoint = str(dense[0] / "checkpoint_last.pt")
    with pytest.raises(InputError, match="--beyond: expected a pruned checkpoint, found a dense one"):
        launcher.rewrite("generate", ["d", "--path", checkpoint, "--beyond", "error"])
    averaging = ["--inputs", str(dense[0]), "--output", str(tmp_path / "a.pt"), "--checkpoint-upper-bound", "3"]
    for more in ([], ["--num-best-checkpoints", "1"]):
        with pytest.raises(InputError, match="--checkpoint-upper-bound: expected --num-epoch-checkpoints or"):
            average_checkpoints.main([*averaging, *more])
    with pytest.raises(InputError, match="--label: expected --out beside it"):
        inspect_checkpoint.main(["--checkpoint", checkpoint, "--label", "tau=0"])
    scored = ["--generated", "g", "--references", "r", "--checkpoint", checkpoint, "--label", "tau=0"]
    with pytest.raises(InputError, match="--label: expected --out beside it"):
        score_translations.main(scored)


def test_cuda_is_not_silently_the_cpu(data, dense, tmp_path):
    if torch.cuda.is_available():
        assert "--CUDA: expected no --cpu" in error_of("train.py", data, "--save-dir", tmp_path, *MODEL, "--CUDA")
        return
    without_cpu = [word for word in MODEL if word != "--cpu"]
    assert "--CUDA: expected a CUDA device" in error_of(
        "train.py", data, "--save-dir", tmp_path, *without_cpu, "--CUDA"
    )
    for flag, message in (("--cuda", "--cuda: expected a CUDA device"), ("--half", "--half: expected a GPU")):
        with pytest.raises(InputError, match=message):
            compute_attn_score.main(["--path", str(dense[0]), "--all", flag])


SCRIPTS = sorted(
    path.name
    for path in FAIRSEQ.glob("*.py")
    if path.stem not in ("launcher", "shims", "processes", "training_run", "generation_run")
)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_explains_itself(script):
    done = run_script(script, "--help")
    assert "python fairseq/" in done.stdout and "usage" in done.stdout.lower()
    if script == "train.py":
        published = "PRUNE_BOOL PRUNE_ENC_SELF_ATTN PRUNE_DEC_SELF_ATTN PRUNE_ENC_DEC_ATTN TAU USE_ENTMAX CUDA"
        published += " RANDOM_PRUNE ENCODER_SELF_ATTN_PATH DECODER_SELF_ATTN_PATH ENCODER_DECODER_ATTN_PATH"
        assert all(f"--{flag}" in done.stdout for flag in published.split())
