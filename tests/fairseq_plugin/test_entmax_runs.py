"""The way of a model with entmax: dense training, patterns, sparse training, and what the checkpoints show."""

import json

import pytest

import compute_attn_score
import inspect_checkpoint
from plugin.checkpoint import read_checkpoint, training_speed
from test_scripts import SITES, losses, train
from tiny_translation import as_arguments, prune_flags

pytestmark = pytest.mark.slow

FILES = {"enc-self": "self-enc", "dec-self": "self-dec", "enc-dec": "enc-dec"}
UPDATES = 8
NAMES = {f"{share}{site}" for share in ("zeros", "pruned", "kept_zeros") for site in ("", *(f"_{s}" for s in SITES))}
ENTMAX = as_arguments({"USE_ENTMAX": True})


@pytest.fixture(scope="module")
def folders(data, tmp_path_factory):
    """Folders of a dense and a sparse training with entmax."""
    folder = tmp_path_factory.mktemp("entmax")
    train(data, folder / "dense", "--max-update", UPDATES, *ENTMAX)
    gather = ["--path", str(folder / "dense"), "--fn", "checkpoint_last.pt", "--all", "--use_entmax"]
    compute_attn_score.main([*gather, "--out", str(folder / "patterns")])
    files = {site: folder / "patterns" / f"{name}.safetensors" for site, name in FILES.items()}
    flags = as_arguments(prune_flags(files, SITES, beyond_pattern="dense"))
    train(data, folder / "sparse", "--max-update", UPDATES, *ENTMAX, *flags)
    return folder


def inspect(folder, name, **labels):
    out = folder / f"{name}.json"
    words = [word for key, value in labels.items() for word in ("--label", f"{key}={value}")]
    inspect_checkpoint.main(["--checkpoint", str(folder / name / "checkpoint_last.pt"), "--out", str(out), *words])
    return json.loads(out.read_text())


def test_a_checkpoint_shows_its_zeros_and_its_speed(folders):
    dense = inspect(folders, "dense", variant="entmax-dense", tau=0)
    sparse = inspect(folders, "sparse", variant="entmax-data", tau=0.6)
    assert dense["variant"] == "entmax-dense" and sparse["tau"] == 0.6
    for name, found in (("dense", dense), ("sparse", sparse)):
        shares = found["metrics"]["test"]
        assert set(shares) == NAMES
        assert 0 < shares["kept_zeros"] <= shares["zeros"] < 1
        assert shares["pruned"] == pytest.approx(found["evaluated_sparsity"])
        assert (shares["pruned"] > 0) == (name == "sparse")
        speed = found["metrics"]["train"]
        record = json.loads((folders / name / "run.json").read_text())
        assert speed["timed_updates"] == UPDATES and 0 < UPDATES * speed["seconds_per_update"] < record["seconds"]
    assert dense["metrics"]["test"]["zeros"] == dense["metrics"]["test"]["kept_zeros"]
    cells = json.loads((folders / "sparse.run.json").read_text())["cells"]
    assert set(cells) == set(SITES) and all(count["kept"] < count["allowed"] for count in cells.values())


def test_the_speed_of_a_resumed_training_is_of_the_updates_that_were_timed(data, folders, tmp_path):
    restored = ("--restore-file", folders / "dense" / "checkpoint_last.pt")
    done = train(data, tmp_path, "--max-update", UPDATES + 2, *ENTMAX, *restored)
    assert sorted(losses(done.stdout + done.stderr)) == [UPDATES + 1, UPDATES + 2]
    before = training_speed(read_checkpoint(folders / "dense" / "checkpoint_last.pt"))
    # fairseq keeps what it restored and logs the rest elsewhere: count and time stay those of the same updates
    assert training_speed(read_checkpoint(tmp_path / "checkpoint_last.pt")) == before
