"""docs/reproducing.md: every published flag has a counterpart that exists, and data is described as the code has it."""

from __future__ import annotations

import functools
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from reproduction.data.language import wikitext
from reproduction.data.tasks import glue, squad
from reproduction.data.translation import iwslt14, multi30k, wmt17
from warm_python import python

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "reproducing.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in TEXT.partition("## From the published README")[2].splitlines()
    if line.startswith("| ") and not line.startswith("| published ")
]
#: Flags of the authors' README, by the script that they belong to.
PUBLISHED = {
    "transformer-xl/train.py": "fn th",
    "fairseq/compute_attn_score.py": "path fn cuda attn_type dataset_name half use_entmax using_old_model",
    "fairseq/train.py": "PRUNE_BOOL PRUNE_ENC_SELF_ATTN PRUNE_DEC_SELF_ATTN PRUNE_ENC_DEC_ATTN TAU USE_ENTMAX "
    "ENCODER_SELF_ATTN_PATH DECODER_SELF_ATTN_PATH ENCODER_DECODER_ATTN_PATH CUDA RANDOM_PRUNE",
    "bert/src/run_glue.py": "save_attention_patterns prune attn_path tau",
}
_WORD = re.compile(r"(?P<script>[\w./-]+\.py)|(?P<flag>--[\w-]+)")


def named_flags() -> dict[str, set[str]]:
    """Script -> the flags that the tables name after it."""
    found: dict[str, set[str]] = {}
    for _, here in ROWS:
        script = None
        for span in re.findall(r"`([^`]*)`", here):
            if span.startswith("snakemake"):
                continue
            for word in _WORD.finditer(span):
                script = word["script"] or script
                if word["flag"]:
                    assert script, here
                    found.setdefault(script, set()).add(word["flag"])
    return found


@functools.cache
def help_of(script: str) -> str:
    done = subprocess.run(
        [python(), str(ROOT / script), "--help"], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(named_flags()))
def test_every_flag_in_the_tables_is_one_of_the_scripts(script: str) -> None:
    known = set(re.findall(r"(?<![\w-])--[\w-]+", help_of(script)))
    assert named_flags()[script] <= known


def test_every_published_flag_has_its_row() -> None:
    for script, flags in PUBLISHED.items():
        for flag in flags.split():
            rows = [here for published, here in ROWS if f"`{flag}`" in published and script in here]
            assert any(f"--{flag}" in here for here in rows), f"{script}: {flag}"


def test_targets_and_files_that_are_named_exist() -> None:
    snakefile = (ROOT / "Snakefile").read_text()
    for target in re.findall(r"snakemake ([a-z]\w+)", TEXT):
        assert f"\nrule {target}:\n" in snakefile, target
    for name in set(re.findall(r"[\w-]+(?:/[\w-]+)+\.(?:py|yaml)", TEXT)):
        assert (ROOT / name).is_file(), name
    rules = "".join(path.read_text() for path in (ROOT / "rules").glob("*.smk"))
    for rule in re.findall(r"the rule `(\w+)`", TEXT):
        assert f"\nrule {rule}:\n" in rules, rule


def test_revisions_addresses_and_checksums_are_the_codes() -> None:
    for dataset, revision in (
        (wikitext.HUB_DATASET, wikitext.HUB_REVISION),
        (glue.HUB_DATASET, glue.HUB_REVISION),
        *((name, revision) for name, _, revision in squad.HUB.values()),
    ):
        assert f"`{dataset}` at `{revision}`" in TEXT
    for url in (iwslt14.URL, *wmt17.TRAINING, wmt17.TEST_URL):
        assert url in TEXT
    assert f"`{multi30k.HUB_DATASET}`" in TEXT
    for name, digest in multi30k.CHECKSUMS.items():
        assert f"    {digest}  {name}\n" in TEXT
    paper = yaml.safe_load((ROOT / "config" / "paper.yaml").read_text())
    for experiment in ("glue", "squad"):
        model = paper[experiment]["model"]
        assert f"`{model['model_name_or_path']}` at `{model['model_revision']}`" in TEXT
