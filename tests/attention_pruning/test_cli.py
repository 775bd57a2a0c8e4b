"""The attention-pruning command: what it prints, writes, draws and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch

import attention_pruning
from attention_pruning import AttentionPattern, DistanceMask, PatternAccumulator, PruneMask
from attention_pruning.cli.main import main
from attention_pruning.cli.plot import INVISIBLE, KEPT, PRUNED, UNOBSERVED
from attention_pruning.make import (
    by_distance,
    distance_like,
    from_pattern,
    random_like,
    shuffled_heads_like,
    window_like,
)


@pytest.fixture
def pattern():
    """Causal with a memory of 16 and never-seen keys at its far end, 2 layers of 3 heads."""
    accumulator = PatternAccumulator(2, 3, 32, 48, "self", causal=True)
    scores = torch.randn(2, 5, 3, 32, 48, generator=torch.Generator().manual_seed(2))
    hidden = ~accumulator.structure.visible()
    hidden[:, :4] = True
    for layer in range(2):
        p = scores[layer].masked_fill(hidden, -torch.inf).softmax(-1)
        accumulator.update(layer, p[..., 4:], key_offset=4)
    return accumulator.finalize({"model": "abc", "seed": 7})


@pytest.fixture
def folder(tmp_path, pattern, monkeypatch):
    """A working folder with pattern.safetensors and mask.safetensors (tau 0.5, rule allowed)."""
    monkeypatch.chdir(tmp_path)
    pattern.save("pattern.safetensors")
    from_pattern(pattern, 0.5, rule="allowed").save("mask.safetensors")
    return tmp_path


def run(*arguments):
    return main([str(argument) for argument in arguments])


def test_inspect_says_what_a_pattern_is(folder, pattern, capsys):
    assert run("inspect", "pattern.safetensors", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts == {
        "file": "pattern.safetensors",
        "what": "pattern",
        "site": "self",
        "causal": True,
        "layers": 2,
        "heads": 3,
        "queries": 32,
        "keys": 48,
        "pool": 1,
        "fewest_observations": 5,
        "most_observations": 5,
        "structural_zeros": pytest.approx(31 * 32 / 2 / (32 * 48)),
        "observed_of_visible": pytest.approx(1 - 4 * 32 / (32 * 48 - 31 * 32 / 2)),
        "fingerprint": pattern.fingerprint,
        "metadata": {"model": "abc", "seed": 7, "sequences": 5, "tokens": 160},
    }


def test_inspect_says_how_sparse_a_mask_is_and_what_it_was_made_from(folder, pattern, capsys):
    assert run("inspect", "mask.safetensors", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    mask = PruneMask.load("mask.safetensors")
    assert (facts["what"], facts["kind"], facts["rule"], facts["scope"]) == ("mask", "data", "allowed", "layer")
    assert facts["nominal_sparsity"] == 0.5
    assert facts["effective_sparsity"] == mask.effective_sparsity
    assert facts["layer_sparsity"] == mask.layer_sparsity
    assert facts["block_sparsity"] == {"16": mask.block_sparsity(16), "32": mask.block_sparsity(32)}
    assert facts["empty_rows"] == 0
    assert facts["metadata"]["pattern_fingerprint"] == pattern.fingerprint

    assert run("inspect", "mask.safetensors") == 0
    lines = capsys.readouterr().out.splitlines()
    for line in ("what: mask", "nominal sparsity: 0.5000", f"effective sparsity: {mask.effective_sparsity:.4f}"):
        assert line in lines
    assert {"causal: yes", "seed: none", "  model: abc", f"  16: {mask.block_sparsity(16):.4f}"} <= set(lines)


def test_mask_makes_the_mask_that_the_library_makes(folder, pattern, capsys):
    assert run("mask", "pattern.safetensors", "--tau", "0.9", "-o", "default.safetensors") == 0
    made = PruneMask.load("default.safetensors")
    assert made.fingerprint == from_pattern(pattern, 0.9).fingerprint
    shown = f"tau 0.9, effective sparsity {made.effective_sparsity:.4f}, 0 empty rows\n"
    assert capsys.readouterr().out == f"default.safetensors: data mask, {shown}"

    command = "mask pattern.safetensors --tau 0.9 --rule allowed --scope row --block-size 8 --row-floor none "
    command += "--unobserved prune --no-crop -o chosen.safetensors"
    assert run(*command.split()) == 0
    chosen = {"rule": "allowed", "scope": "row", "row_floor": "none", "unobserved": "prune", "crop": False}
    expected = from_pattern(pattern, 0.9, block_size=8, **chosen)
    made = PruneMask.load("chosen.safetensors")
    assert made.fingerprint == expected.fingerprint
    assert made.metadata == expected.metadata


def test_mask_makes_baselines_with_sinks(folder):
    square = AttentionPattern(torch.rand(1, 2, 8, 8), torch.ones(8, 8), "enc-self")
    square.save("square.safetensors")
    assert run("mask", "square.safetensors", "--tau", 0.6, "-o", "like.safetensors") == 0
    assert run("mask", "--window-like", "like.safetensors", "--sinks", 2, "-o", "window.safetensors") == 0
    data = PruneMask.load("like.safetensors")
    assert PruneMask.load("window.safetensors").fingerprint == window_like(data, sinks=2).fingerprint
    command = ("mask", "square.safetensors", "--distance-like", "like.safetensors", "--sinks", 1)
    assert run(*command, "-o", "distance.safetensors") == 0
    found = PruneMask.load("distance.safetensors")
    assert found.fingerprint == distance_like(data, square, sinks=1).fingerprint


def test_mask_makes_baselines(folder, pattern):
    assert run("mask", "--random-like", "mask.safetensors", "--seed", 5, "-o", "random.safetensors") == 0
    assert run("mask", "--window-like", "mask.safetensors", "-o", "window.safetensors") == 0
    data = PruneMask.load("mask.safetensors")
    assert PruneMask.load("random.safetensors").fingerprint == random_like(data, 5).fingerprint
    assert PruneMask.load("window.safetensors").fingerprint == window_like(data).fingerprint
    assert run("mask", "--shuffled-heads-like", "mask.safetensors", "--seed", 5, "-o", "shuffled.safetensors") == 0
    made = PruneMask.load("shuffled.safetensors")
    assert (made.kind, made.seed) == ("shuffled-heads", 5)
    assert made.fingerprint == shuffled_heads_like(data, 5).fingerprint
    equal = ("--equal-use", "pattern.safetensors", "-o", "equal.safetensors")
    assert run("mask", "--random-like", "mask.safetensors", "--seed", 5, *equal) == 0
    made = PruneMask.load("equal.safetensors")
    assert made.fingerprint == random_like(data, 5, pattern.count).fingerprint
    assert run("mask", "--window-like", "mask.safetensors", *equal) == 0
    made = PruneMask.load("equal.safetensors")
    assert made.fingerprint == window_like(data, pattern.count).fingerprint
    assert run("mask", "pattern.safetensors", "--distance-like", "mask.safetensors", *equal) == 0
    made = PruneMask.load("equal.safetensors")
    assert made.fingerprint == distance_like(data, pattern, pattern.count).fingerprint
    assert made.kind == "distance"
    assert run("mask", "pattern.safetensors", "--tau", "0.5", *equal) == 2


def test_a_mask_by_distance_is_made_inspected_and_drawn(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    count = torch.ones(24, 24, dtype=torch.int64).tril()
    scores = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    pattern = AttentionPattern(scores.masked_fill(count == 0, -torch.inf).softmax(-1), count, "self", True)
    pattern.save("p.safetensors")
    flags = ("--by-distance", "--tau", "0.6", "--sinks", "2", "--scope", "head")
    assert run("mask", "p.safetensors", *flags, "-o", "m.safetensors") == 0
    mask = by_distance(pattern, 0.6, sinks=2, scope="head")
    assert DistanceMask.load("m.safetensors") == mask
    assert f"distance mask, tau 0.6, effective sparsity {mask.effective_sparsity:.4f}, span" in capsys.readouterr().out
    assert run("inspect", "m.safetensors", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["what"] == "mask by distance, for any length" and facts["sinks"] == 2
    assert facts["sparsity_at_length"]["24"] == mask.effective_sparsity
    assert facts["sparsity_at_length"]["8192"] == mask.sparsity(8192) > mask.effective_sparsity
    assert run("plot", "m.safetensors", "-o", "of_distances.png") == 0
    mask.at(24).save("fixed.safetensors")
    assert run("plot", "fixed.safetensors", "-o", "of_cells.png") == 0
    by_distance_pixels, of_cells = pixels("of_distances.png")[0], pixels("of_cells.png")[0]
    assert all(by_distance_pixels[colour] == of_cells[colour] for colour in (PRUNED, KEPT, INVISIBLE))


def test_convert_goes_there_and_back(folder, pattern):
    assert run("convert", "pattern.safetensors", "there.npy", "--layout", "transformer-xl") == 0
    assert np.load("there.npy").shape == (2, 32, 48, 1, 3)
    assert run("convert", "there.npy", "back.safetensors", "--site", "self", "--causal") == 0
    back = AttentionPattern.load("back.safetensors")
    assert torch.equal(back.average, pattern.average)
    assert torch.equal(back.allowed, pattern.allowed)


def pixels(path):
    """The colours of a picture: how many pixels of each, as #rrggbb."""
    image = (matplotlib.image.imread(path)[..., :3] * 255).round().astype(int)
    colours, counts = np.unique(image.reshape(-1, 3), axis=0, return_counts=True)
    return {
        "#{:02x}{:02x}{:02x}".format(*colour): int(n) for colour, n in zip(colours, counts, strict=True)
    }, image.shape


def test_plot_draws_a_mask_in_its_colours(folder):
    assert run("plot", "mask.safetensors", "-o", "mask.png") == 0
    found, (height, width, _) = pixels("mask.png")
    assert height > 300 and width > 600
    mask = PruneMask.load("mask.safetensors")
    cells = {
        PRUNED: sum(int((mask.cells(layer) & mask.visible).sum()) for layer in range(2)),
        KEPT: sum(int((~mask.cells(layer) & mask.allowed).sum()) for layer in range(2)),
        UNOBSERVED: int((mask.visible & ~mask.allowed).sum()) * 6,
        INVISIBLE: int((~mask.visible).sum()) * 6,
    }
    for colour, number in cells.items():  # its share of the panels, within what legend and lines add or take
        share = found[colour] / sum(found[each] for each in cells)
        assert abs(share - number / sum(cells.values())) < 0.02


def test_plot_draws_a_pattern_on_a_log_scale_unless_told_otherwise(folder):
    assert run("plot", "pattern.safetensors", "-o", "log.png") == 0
    assert run("plot", "pattern.safetensors", "-o", "linear.png", "--no-log") == 0
    log, linear = pixels("log.png")[0], pixels("linear.png")[0]
    assert log != linear
    for found in (log, linear):
        assert found[INVISIBLE] > 1000 and found[UNOBSERVED] > 1000
        assert len(found) > 100  # a colour scale


def test_it_runs_as_a_module_and_imports_no_matplotlib_before_it_draws(folder, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(attention_pruning.__file__).parents[1]))
    code = "import sys; from attention_pruning.cli import main; main(['inspect', 'mask.safetensors', '--json'])"
    code += "; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0
    module = [sys.executable, "-m", "attention_pruning.cli"]
    found = subprocess.run([*module, "inspect", "nothing.safetensors"], capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr == "error: nothing.safetensors: expected a safetensors file, found no such file\n"


def test_overlap_says_how_much_two_masks_prune_in_common(folder, capsys):
    assert run("mask", "--random-like", "mask.safetensors", "--seed", "1", "-o", "random.safetensors") == 0
    capsys.readouterr()
    assert run("overlap", "mask.safetensors", "random.safetensors", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    expected = PruneMask.load("mask.safetensors").overlap(PruneMask.load("random.safetensors"))
    assert facts["overlap_by_head"] == {f"layer {layer}": heads for layer, heads in enumerate(expected.tolist())}
    assert facts["overlap"] == float(expected.mean()) and 0.1 < facts["overlap"] < 0.9
    assert run("overlap", "mask.safetensors", "mask.safetensors") == 0
    assert "overlap: 1.0000" in capsys.readouterr().out
    assert run("overlap", "mask.safetensors", "pattern.safetensors") == 2
    assert "expected a file of format 'attention-pruning/mask/1'" in capsys.readouterr().err


@pytest.mark.parametrize("command", [[], ["inspect"], ["overlap"], ["mask"], ["convert"], ["plot"], ["explore"]])
def test_help_explains_every_flag_with_its_default(command, capsys):
    with pytest.raises(SystemExit) as left:
        main([*command, "--help"])
    assert left.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    flags = text.count(" --") - text.split("options:")[0].count(" --")
    assert flags >= 1 and (not command or "(default: " in text)


def test_explore_writes_a_page_of_a_pattern_and_a_mask(folder, capsys):
    assert run("explore", "pattern.safetensors", "mask.safetensors", "-o", "page.html") == 0
    size = (folder / "page.html").stat().st_size
    assert capsys.readouterr().out == f"page.html: {size / 1e6:.1f} MB\n"
    text = (folder / "page.html").read_text(encoding="utf-8")
    assert '<h2 id="name-0">pattern.safetensors</h2>' in text and ">of mask.safetensors</option>" in text


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("inspect pickled.npy", "pickled.npy: expected a site to be given"),
        ("inspect pickled.npy --site self", "pickled.npy: expected a whole .npy file of plain numbers, found: Object"),
        ("inspect flat.npy --site self", "flat.npy: expected floats with five axes"),
        ("inspect truncated.safetensors", "truncated.safetensors: expected a whole safetensors file"),
        ("inspect pattern.safetensors --site enc-self", "expected site enc-self, as given, found self in the file"),
        ("inspect mask.safetensors --no-causal", "mask.safetensors: expected causal False, as given, found True"),
        ("inspect mask.safetensors --layout bert", "mask.safetensors: expected a .npy file where a layout (bert)"),
        ("inspect pattern.safetensors --layout bert", "expected a .npy file where a layout (bert) is given"),
        ("mask pattern.safetensors --tau 90 -o out.safetensors", "for 90 percent write 0.9"),
        ("mask pattern.safetensors --tau 90% -o out.safetensors", "for 90 percent write 0.9"),
        ("mask pattern.safetensors -o out.safetensors", "expected --tau with PATTERN, found none"),
        ("mask pattern.safetensors --tau 0.5 --seed 1 -o out.safetensors", "expected no --seed with PATTERN"),
        ("mask pattern.safetensors --tau 0.5 --block-size 0 -o out.safetensors", "block_size: expected a whole number"),
        ("mask pattern.safetensors --tau 0.5 -o pattern.safetensors", "expected another file to write"),
        ("mask pattern.safetensors --tau 0.5 -o out.npy", "out.npy: expected the name of a .safetensors file"),
        ("mask pattern.safetensors --tau 0.5 -o no/out.safetensors", "no/out.safetensors: expected a folder"),
        ("mask mask.safetensors --tau 0.5 -o out.safetensors", "mask.safetensors: expected a file of format"),
        ("mask pattern.safetensors --tau 0.5 --sinks 2 -o out.safetensors", "expected no --sinks with PATTERN"),
        ("mask pattern.safetensors --by-distance -o out.safetensors", "expected --tau with PATTERN, found none"),
        (
            "mask pattern.safetensors --by-distance --tau 0.5 --no-crop --seed 0 -o out.safetensors",
            "expected no --seed, --crop with --by-distance",
        ),
        (
            "mask pattern.safetensors --by-distance --tau 0.5 -o out.safetensors",
            "sinks: expected 0 for a pattern with memory slots, found 4",
        ),
        (
            "mask --window-like mask.safetensors --sinks 2 -o out.safetensors",
            "sinks: expected keys that start with the text, found 16 memory slots before them in mask.safetensors",
        ),
        (
            "mask --random-like mask.safetensors --sinks 2 --seed 1 -o out.safetensors",
            "expected no --sinks with --random",
        ),
        (
            "mask --window-like mask.safetensors --by-distance -o out.safetensors",
            "expected no --by-distance with --window-like",
        ),
        ("mask --tau 0.5 -o out.safetensors", "--window-like, --distance-like, found none"),
        (
            "mask pattern.safetensors --window-like mask.safetensors -o out.safetensors",
            "found PATTERN and --window-like",
        ),
        (
            "mask --distance-like mask.safetensors -o out.safetensors",
            "expected PATTERN with --distance-like, found none",
        ),
        (
            "mask pattern.safetensors --distance-like mask.safetensors --tau 0.5 -o out.safetensors",
            "expected no --tau with --distance-like",
        ),
        (
            "mask --window-like mask.safetensors --distance-like mask.safetensors -o out.safetensors",
            "found --window-like and --distance-like",
        ),
        ("mask pattern.safetensors --distance-like mask.safetensors -o mask.safetensors", "expected another file"),
        (
            "mask --shuffled-heads-like mask.safetensors -o out.safetensors",
            "expected --seed with --shuffled-heads-like, found none",
        ),
        (
            "mask --shuffled-heads-like mask.safetensors --seed 1 --equal-use pattern.safetensors -o out.safetensors",
            "expected no --equal-use with --shuffled-heads-like",
        ),
        ("mask --random-like mask.safetensors -o out.safetensors", "expected --seed with --random-like, found none"),
        ("mask --random-like mask.safetensors --seed -1 -o out.safetensors", "seed: expected a whole number"),
        (
            "mask --window-like mask.safetensors --rule allowed --seed 1 -o out.safetensors",
            "expected no --rule, --seed with --window-like",
        ),
        ("mask --random-like pattern.safetensors --seed 1 -o out.safetensors", "pattern.safetensors: expected a file"),
        ("convert pattern.safetensors out.npy", "out.npy: expected --layout, one of transformer-xl, fairseq, bert"),
        ("convert pattern.safetensors out.safetensors", "found '.safetensors' to '.safetensors'"),
        ("convert mask.safetensors out.npy --layout bert", "mask.safetensors: expected a file of format"),
        ("plot pattern.safetensors -o out.txt", "out.txt: expected the name of a .png, .pdf or .svg file, found .txt"),
        ("explore pattern.safetensors -o out.png", "out.png: expected the name of a .html file to write, found .png"),
        ("explore pattern.safetensors -o no/out.html", "no/out.html: expected a folder that can be written to"),
        ("explore mask.safetensors -o out.html", "mask.safetensors: expected a file of format"),
        ("explore pattern.safetensors truncated.safetensors -o out.html", "expected a whole safetensors file"),
        ("plot pattern.safetensors -o no/out.png", "no/out.png: expected a folder that can be written to"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(folder, capsys, command, message):
    np.save("pickled.npy", np.array([{}], dtype=object), allow_pickle=True)
    np.save("flat.npy", np.ones((2, 3, 4, 5)))
    content = (folder / "pattern.safetensors").read_bytes()
    (folder / "truncated.safetensors").write_bytes(content[: len(content) // 2])
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert run(*command.split()) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and message in err
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
