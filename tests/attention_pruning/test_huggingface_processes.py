"""Two processes collect what one does, and stop together where one of them cannot go on."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
import torch

from attention_pruning import AttentionPattern, InputError
from attention_pruning.huggingface import collect_patterns
from tiny_models import batch_for, make, padded
from warm_python import spawn

pytestmark = pytest.mark.slow

SHORT, LONG = padded((3, 2), 3), padded((7, 4), 7, seed=1)
BROKEN = {"input_ids": torch.zeros(1, 2, 3, dtype=torch.long)}
#: By name: the model, the batches of both processes, and the options of both.
CASES = {
    "one without batches": ("BERT", ([SHORT, LONG], []), ({"lengths": 7}, {"lengths": 7})),
    "one without batches or lengths": ("BART", ([], [batch_for("BART")]), ({}, {})),
    "two lengths": ("BERT", ([SHORT], [LONG, SHORT]), ({}, {})),
    "no batch": ("BERT", ([], []), ({}, {})),
    "no batch, but lengths": ("BERT", ([], []), ({"lengths": 7}, {"lengths": 7})),
    "a list as a batch": ("BERT", ([LONG, LONG], [LONG, ["ids"]]), ({}, {})),
    "a broken first batch": ("BERT", ([BROKEN], [LONG]), ({}, {})),
    "a batch too long": ("BERT", ([SHORT, LONG], [SHORT]), ({}, {})),
    "an unknown site": ("BERT", ([LONG], [LONG]), ({}, {"sites": "enc-dec"})),
    "other blocks": ("BERT", ([LONG], [LONG]), ({}, {"block_size": 2})),
    "other lengths": ("BERT", ([LONG], [LONG]), ({"lengths": 8}, {})),
}


def _collect_in_process(rank, meeting_point, folder):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    said = {}
    for case, (name, batches, options) in CASES.items():
        try:
            patterns = collect_patterns(make(name), iter(batches[rank]), **options[rank])
        except Exception as error:
            said[case] = [type(error).__name__, str(error)]
        else:
            said[case] = list(patterns)
            for site, pattern in patterns.items():
                pattern.save(f"{folder}/{case}.{site}.{rank}.safetensors")
    (folder / f"{rank}.json").write_text(json.dumps(said))
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def collected(tmp_path_factory):
    """The folder of the patterns, and what each process said in each case."""
    folder = tmp_path_factory.mktemp("collected")
    spawn(_collect_in_process, (str(folder / "meeting"), folder), 2)
    return folder, [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("case", ["one without batches", "one without batches or lengths", "two lengths"])
def test_both_processes_get_the_pattern_of_all_batches(collected, case):
    folder, said = collected
    name, batches, _ = CASES[case]
    lengths = {} if name == "BART" else {"lengths": 7}
    expected = collect_patterns(make(name), batches[0] + batches[1], **lengths)
    assert said[0][case] == said[1][case] == list(expected)
    for site, pattern in expected.items():
        found = [AttentionPattern.load(folder / f"{case}.{site}.{rank}.safetensors") for rank in (0, 1)]
        assert found[0].fingerprint == found[1].fingerprint and found[0].metadata == found[1].metadata
        assert found[0].metadata == pattern.metadata and torch.equal(found[0].count, pattern.count)
        torch.testing.assert_close(found[0].average, pattern.average, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("case", "rank", "message"),
    [
        ("a list as a batch", 1, "dataloader: expected batches that map argument names to tensors, found list"),
        ("a batch too long", 0, "self: expected at most 3 queries and 3 keys, the lengths of the first batch"),
        ("an unknown site", 1, "sites: expected some of self, those of BertForMaskedLM, found enc-dec"),
    ],
)
def test_an_error_of_one_process_ends_both_in_one_line(collected, case, rank, message):
    own, other = collected[1][rank][case], collected[1][1 - rank][case]
    assert own[0] == other[0] == InputError.__name__
    assert own[1].startswith(message)
    assert other[1] == f"process {rank} failed, so all processes stop: {own[1]}"


def test_an_error_of_the_model_itself_ends_both(collected):
    own, other = (said["a broken first batch"] for said in collected[1])
    assert own[0] != InputError.__name__ and other[0] == InputError.__name__
    assert other[1].startswith(f"process 0 failed, so all processes stop: {own[0]}: ") and "\n" not in other[1]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no batch", "dataloader: expected at least one batch"),
        ("no batch, but lengths", "dataloader: expected at least one batch"),
        ("other blocks", "collect_patterns: expected all processes to collect the same, found"),
        ("other lengths", "collect_patterns: expected all processes to collect the same, found"),
    ],
)
def test_both_refuse_alike_what_both_know(collected, case, message):
    first, second = (said[case] for said in collected[1])
    assert first == second and first[0] == InputError.__name__ and first[1].startswith(message)
