"""The smoke configuration: what it runs, and how its workflow is called outside the checkout."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import yaml

from warm_python import python

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "config" / "smoke.yaml"
CONFIG = yaml.safe_load(SMOKE.read_text())
Model = tuple[str, float]


def models(experiment: str) -> list[Model]:
    """(variant, tau) of every model of an experiment."""
    pruning = CONFIG[experiment]["pruning"]
    controls = [(variant, tau) for variant in pruning["controls"] for tau in pruning["control_taus"]]
    return [("dense", 0), *(("data", tau) for tau in pruning["taus"]), *controls]


def runs(experiment: str, dataset: str) -> dict[tuple[str, float, int], Path]:
    """The folder of every model and seed."""
    folder = Path("runs") / "smoke" / experiment / dataset
    return {
        (variant, tau, seed): folder / variant / f"tau{tau:g}" / f"seed{seed}"
        for variant, tau in models(experiment)
        for seed in CONFIG[experiment]["seeds"]
    }


LM, MT = (CONFIG[name]["dataset"]["name"] for name in ("language_modelling", "translation"))
TASKS = CONFIG["glue"]["dataset"]["tasks"]
SQUAD_MODELS = [("dense", 0), *(("data", tau) for tau in CONFIG["squad"]["pruning"]["taus"])]
SEEDS = CONFIG["language_modelling"]["seeds"]
CONTROL_TAUS = CONFIG["language_modelling"]["pruning"]["control_taus"]
RUNS = runs("language_modelling", LM)
EXPERIMENT = Path("runs") / "smoke" / "language_modelling" / LM


def command(folder: Path, *arguments: str, config: Path = SMOKE) -> list[str]:
    snakemake = [python(), "-m", "snakemake", "--snakefile", ROOT / "Snakefile", "--directory", folder]
    return [*map(str, snakemake), "--configfile", str(config), "--cores", "2", *arguments]


def snakemake(folder: Path, *arguments: str, config: Path = SMOKE) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(folder, *arguments, config=config),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A bare PATH: jobs must find the interpreter that runs Snakemake, also where nothing is activated.
        env={**os.environ, "PATH": os.defpath, "OMP_NUM_THREADS": "7"},
        check=False,
    )
