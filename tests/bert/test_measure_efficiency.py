"""Timing under block masks: what is measured, what is recorded, what is refused."""

from __future__ import annotations

import json

import pytest
import torch

import measure_efficiency
from attention_pruning import InputError, PruneMask
from attention_pruning.huggingface import model_masks
from attention_pruning.make import from_pattern
from tiny_bert import flag_list, random_pattern

LENGTH = 32


@pytest.fixture
def masks(tmp_path):
    """Mask files of whole blocks, by tau."""
    pattern, files = random_pattern(length=LENGTH), {}
    for tau in (0.25, 0.5):
        mask = from_pattern(pattern, tau, rule="allowed", row_floor="none", block_size=16)
        files[tau] = tmp_path / f"mask{tau}.safetensors"
        mask.save(files[tau])
    return files


@pytest.fixture
def flags(model_folder, masks, tmp_path):
    shape = {"max_seq_length": LENGTH, "batch_size": 2, "rounds": 2, "out": tmp_path / "out" / "efficiency.json"}
    return [*flag_list(model_name_or_path=model_folder, **shape), "--use_cpu", "--masks", *map(str, masks.values())]


@pytest.fixture
def here(monkeypatch):
    """Memory is measured in the test's process, which tells nothing but takes no time."""

    def measure(script, argv, setting):
        return measure_efficiency.measure_memory(bench_of(list(argv)), setting)

    monkeypatch.setattr(measure_efficiency, "memory_in_a_process", measure)


def bench_of(argv):
    return measure_efficiency.EncoderBench(measure_efficiency.build_parser().parse_args(argv))


def test_a_file_has_every_setting_in_both_steps(flags, masks, here, tmp_path):
    measure_efficiency.main(flags)
    found = json.loads((tmp_path / "out" / "efficiency.json").read_text())
    assert [setting["name"] for setting in found["settings"]] == ["dense", "tau 0.25", "tau 0.5", "attention_removed"]
    assert [setting["tau"] for setting in found["settings"]] == [0, 0.25, 0.5, 0]
    for tau, setting in zip(masks, found["settings"][1:], strict=False):
        mask = PruneMask.load(masks[tau])
        assert setting["mask"] == mask.fingerprint and setting["block_sparsity"] == mask.block_sparsity(16)
    for setting in found["settings"]:
        for step in ("inference", "training"):
            first, second = setting[step]["seconds_by_round"]
            assert setting[step]["seconds"] == pytest.approx((first + second) / 2) and first > 0
        assert setting["inference"]["peak_memory_bytes"] <= setting["training"]["peak_memory_bytes"]
    assert found["device"] and found["block_size"] == 16 and found["threads"] == torch.get_num_threads()


def test_a_setting_is_what_it_says(flags):
    args = measure_efficiency.build_parser().parse_args(flags)
    bench, settings = measure_efficiency.EncoderBench(args), measure_efficiency.read_settings(args)
    found = {}
    for setting in [*settings, settings[0]]:  # dense once more, after all others
        bench.use(setting)
        assert (list(model_masks(bench.model).values()) or [None]) == [setting.mask]
        with torch.no_grad():
            bench.model.eval()
            logits = bench.model(bench.batch["input_ids"]).start_logits
        if setting.name in found:
            assert torch.equal(logits, found[setting.name])
        found[setting.name] = logits
    for name, logits in found.items():
        assert name == "dense" or not torch.allclose(logits, found["dense"], atol=1e-4)


def test_without_attention_every_projection_still_learns(flags):
    bench = bench_of(flags)
    bench.use(measure_efficiency.Setting(measure_efficiency.REMOVED))
    bench.model(**bench.batch).loss.backward()
    for name, weight in bench.model.named_parameters():
        if "attention.self" in name and name.endswith("weight"):
            assert weight.grad.abs().sum() > 0, name


@pytest.mark.slow
def test_memory_is_that_of_a_process_of_its_own(flags):
    pruned = measure_efficiency.read_settings(measure_efficiency.build_parser().parse_args(flags))[1]
    found = measure_efficiency.memory_in_a_process(measure_efficiency.__file__, flags, pruned)
    assert found.keys() == {"inference", "training"} and all(size > 10**8 for size in found.values())


def test_bad_input_is_refused(flags, masks, tmp_path):
    cells = tmp_path / "cells.safetensors"
    from_pattern(random_pattern(length=LENGTH), 0.5).save(cells)
    for more, message in (
        (["--masks", str(cells)], "expected a mask of whole blocks whose side is a multiple of 16, found block_size 1"),
        (["--masks", str(masks[0.5]), str(masks[0.5])], "expected masks of different tau, found tau 0.5, tau 0.5"),
        (["--max_seq_length", "48"], "expected query_length 48, that of the model, found 32"),
        (["--rounds", "0"], "--rounds: expected at least 1, found 0"),
        (["--masks", str(tmp_path / "none.safetensors")], "none.safetensors"),
    ):
        with pytest.raises(InputError, match=message) as refusal:
            measure_efficiency.main([*flags, *more])
        assert "\n" not in str(refusal.value)
