"""Processes that average together: what they have is exchanged first, and refused in all of them alike."""

from __future__ import annotations

import datetime
import json

import pytest
import torch

from attention_pruning import InputError, PatternAccumulator
from warm_python import spawn

P = torch.tensor([[[[0.25, 0.75, 0.0], [0.5, 0.25, 0.25]]]])


def seen(queries=2, keys=3, times=1, **arguments):
    """An accumulator after some batches of P."""
    accumulator = PatternAccumulator(1, 1, queries, keys, "self", causal=True, **arguments)
    for _ in range(times):
        accumulator.update(0, P[..., :queries, :keys])
    return accumulator


def describe(accumulators):
    patterns = {name: each.finalize() for name, each in accumulators.items()}
    return {name: [pattern.fingerprint, pattern.metadata["sequences"]] for name, pattern in patterns.items()}


def reduced(accumulator):
    accumulator.all_reduce()
    return {"self": accumulator}


#: What each of two processes does.
JOBS = {
    "both": (lambda: reduced(seen()), lambda: reduced(seen(times=2))),
    "one without a batch": (lambda: reduced(seen(times=0)), lambda: reduced(seen(times=2))),
    "another length": (lambda: reduced(seen(1, 2)), lambda: reduced(seen())),
    "another block size": (lambda: reduced(seen()), lambda: reduced(seen(block_size=2))),
}
#: And the end of what both say.
OTHER = "accumulator: expected {}, that of process 0, in every process, found 2 in process 1"
REFUSED = {"another length": OTHER.format("query_length 1"), "another block size": OTHER.format("block_size 1")}


def _work(rank, meeting_point, folder):
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{meeting_point}",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(seconds=60),
    )
    said = {}
    for name, jobs in JOBS.items():  # one after another: whatever is refused leaves the processes in step
        try:
            said[name] = describe(jobs[rank]())
        except InputError as error:
            said[name] = str(error)
    torch.distributed.destroy_process_group()
    (folder / f"{rank}.json").write_text(json.dumps(said))


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """What two processes say of every job, by rank."""
    folder = tmp_path_factory.mktemp("processes")
    spawn(_work, (folder / "meeting", folder), 2)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", sorted(set(JOBS) - set(REFUSED)))
def test_every_process_gets_the_pattern_of_all(both, name):
    number = {"both": 3, "one without a batch": 2}[name]
    assert both[0][name] == both[1][name] == describe({"self": seen(times=number)})


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_does_not_fit_is_refused_in_every_process(both, name):
    assert both[0][name] == both[1][name] == REFUSED[name]


def test_a_process_alone_has_what_it_saw():
    alone = seen(times=2)
    alone.all_reduce()
    assert describe({"self": alone}) == describe({"self": seen(times=2)})
