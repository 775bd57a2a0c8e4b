"""A collection that was cut short goes on where it was, and gives the same patterns to the bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from attention_pruning import AttentionPattern, InputError
from attention_pruning.huggingface import collect_patterns, prune_model, resuming
from tiny_models import LENGTH, batch_for, make, random_masks
from warm_python import spawn

pytestmark = pytest.mark.slow

LENGTHS = {"enc-self": (9, 9), "dec-self": (7, 7), "enc-dec": (7, 9)}


def batches(name="BART", number=5):
    return [batch_for(name, left=seed == 2, seed=seed) for seed in range(number)]


def assert_the_same(found, expected):
    assert found.keys() == expected.keys()
    for site, pattern in found.items():
        assert pattern.fingerprint == expected[site].fingerprint and pattern.metadata == expected[site].metadata


class Cut(Exception):
    """What ends a collection in the middle."""


def cut_after(number, data):
    yield from data[:number]
    raise Cut


@pytest.mark.parametrize("block_size", [1, 4])
@pytest.mark.parametrize("number", [1, 3, 5])
@pytest.mark.parametrize("name", ["BART", "ALBERT"])
def test_a_collection_goes_on_where_it_was(tmp_path, monkeypatch, name, number, block_size):
    model, data, path = make(name), batches(name), tmp_path / "sums.safetensors"
    options = {"block_size": block_size, "lengths": LENGTHS if name == "BART" else None}
    expected = collect_patterns(model, data, **options)
    options |= {"resume": path, "resume_every": 0}
    with pytest.raises(Cut):
        collect_patterns(model, cut_after(number, data), **options)
    ran = []
    handle = model.register_forward_pre_hook(lambda *call: ran.append(1))
    assert_the_same(collect_patterns(model, data, **options), expected)
    assert len(ran) == 5 - number
    assert_the_same(collect_patterns(model, data, **options), expected)  # it is done: nothing runs
    assert len(ran) == 5 - number and [file.name for file in tmp_path.iterdir()] == [path.name]
    handle.remove()


_SCRIPT = """
import sys, time
from pathlib import Path
from attention_pruning.huggingface import collect_patterns
from test_huggingface_resume import batches
from tiny_models import make

def slow(data, folder):
    for number, batch in enumerate(data):
        if number == 3:
            (folder / "three").touch()
            time.sleep(600)
        yield batch

folder = Path(sys.argv[1])
collect_patterns(make("BERT"), slow(batches("BERT"), folder), block_size=4, resume=folder / "sums.safetensors",
                 resume_every=0)
"""


def test_a_killed_collection_goes_on_to_the_bit(tmp_path):
    here = Path(__file__).parent
    path = os.pathsep.join(map(str, (here, *here.parents[:2])))
    process = subprocess.Popen([sys.executable, "-c", _SCRIPT, str(tmp_path)], env=os.environ | {"PYTHONPATH": path})
    while not (tmp_path / "three").exists() and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    data, ran = batches("BERT"), []
    model = make("BERT")
    model.register_forward_pre_hook(lambda *call: ran.append(1))
    found = collect_patterns(model, data, block_size=4, resume=tmp_path / "sums.safetensors")
    assert len(ran) == 2
    assert_the_same(found, collect_patterns(make("BERT"), data, block_size=4))


def test_more_batches_add_to_what_is_there(tmp_path):
    model, data = make("BERT"), batches("BERT")
    some = collect_patterns(model, data, max_batches=2, resume=tmp_path / "sums.safetensors")
    assert_the_same(some, collect_patterns(model, data[:2]))
    assert_the_same(collect_patterns(model, data, resume=tmp_path / "sums.safetensors"), collect_patterns(model, data))


def test_time_decides_when_sums_are_written(tmp_path, monkeypatch):
    now, written = [0.0], []
    monkeypatch.setattr(resuming.time, "monotonic", lambda: now[0])
    write = resuming.PartialSums.write
    monkeypatch.setattr(resuming.PartialSums, "write", lambda self: (written.append(self.batches), write(self)))

    def ticking(data):
        for batch in data:
            now[0] += 20
            yield batch

    collect_patterns(make("BERT"), ticking(batches("BERT", 7)), resume=tmp_path / "sums.safetensors", resume_every=60)
    assert written == [4, 7]  # the clock starts once the first batch was read


def other_weights():
    return make("BERT", seed=1)


def pruned():
    return prune_model(make("BERT"), random_masks("BERT", 0.5))


@pytest.mark.parametrize(
    ("other", "data", "options", "message"),
    [
        (other_weights, batches("BERT"), {}, "expected sums of weights [0-9a-f]{16}, found those of [0-9a-f]{16}; "),
        (lambda: make("Llama"), batches("BERT"), {}, "expected sums of model LlamaForCausalLM, found those of Bert"),
        (pruned, batches("BERT"), {}, "expected sums of self mask [0-9a-f]{16}, found those of None; "),
        (make, batches("BERT"), {"block_size": 2}, "expected sums of self block_size 2, found those of 1; "),
        (make, batches("BERT"), {"lengths": LENGTH}, r"expected sums of self lengths \[7, 7\], found those of None; "),
        (make, batches("BERT")[::-1], {}, r"expected the 3 batches that its sums are made from, in their order, found"),
        (make, batches("BERT")[:2], {}, "expected the 3 batches that its sums are made from, found 2"),
    ],
)
def test_another_collection_is_refused(tmp_path, other, data, options, message):
    path = tmp_path / "sums.safetensors"
    collect_patterns(make("BERT"), batches("BERT"), max_batches=3, resume=path)
    before = path.read_bytes()
    with pytest.raises(InputError, match=f"sums.safetensors: {message}") as refusal:
        collect_patterns(other("BERT") if other is make else other(), data, resume=path, **options)
    assert "\n" not in str(refusal.value) and path.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resume": "no/sums.safetensors"}, "resume: expected the name of a .safetensors file in a folder that exists"),
        ({"resume": "sums.pt"}, "resume: expected the name of a .safetensors file in a folder that exists, found sums"),
        ({"max_batches": 0}, "max_batches: expected a whole number of 1 or more, found 0"),
        ({"max_batches": 1.5}, "max_batches: expected a whole number of 1 or more, found 1.5"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_runs(options, message):
    model = make("BERT")
    model.register_forward_pre_hook(lambda *call: pytest.fail("the model ran"))
    with pytest.raises(InputError, match=message):
        collect_patterns(model, batches("BERT"), **options)


def test_another_file_is_not_taken_for_sums(tmp_path):
    collect_patterns(make("BERT"), batches("BERT"))["self"].save(tmp_path / "pattern.safetensors")
    with pytest.raises(InputError, match="expected a file of format 'attention-pruning/collection/1', found"):
        collect_patterns(make("BERT"), batches("BERT"), resume=tmp_path / "pattern.safetensors")


def test_max_batches_reads_no_more(tmp_path):
    data = batches("BERT")
    expected = collect_patterns(make("BERT"), data[:2])
    assert_the_same(collect_patterns(make("BERT"), cut_after(2, data), max_batches=2), expected)


def _cut_and_go_on(rank, meeting_point, folder):
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=2)
    data, model = batches("BERT")[rank::2], make("BERT")
    options = {"block_size": 4, "resume": folder / "sums.safetensors", "resume_every": 0}
    with pytest.raises(Cut if rank == 1 else InputError):
        collect_patterns(model, cut_after(1, data) if rank == 1 else data, **options)
    ran = []
    model.register_forward_pre_hook(lambda *call: ran.append(1))
    pattern = collect_patterns(model, data, **options)["self"]
    pattern.save(folder / f"{rank}-{len(ran)}.safetensors")
    torch.distributed.destroy_process_group()


def test_each_process_goes_on_where_it_was(tmp_path):
    spawn(_cut_and_go_on, (str(tmp_path / "meeting"), tmp_path), 2)
    expected = collect_patterns(make("BERT"), batches("BERT"), block_size=4)["self"]
    # process 0 was done, but for the first batch that tells the lengths; process 1 had one batch left
    found = [AttentionPattern.load(tmp_path / name) for name in ("0-1.safetensors", "1-2.safetensors")]
    assert found[0].fingerprint == found[1].fingerprint and torch.equal(found[0].count, expected.count)
    assert found[0].metadata == found[1].metadata == expected.metadata
    torch.testing.assert_close(found[0].average, expected.average, atol=1e-6, rtol=0)
    assert {path.name for path in tmp_path.glob("sums*")} == {f"sums.{rank}-of-2.safetensors" for rank in (0, 1)}
