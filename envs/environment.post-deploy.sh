#!/usr/bin/env bash
# Snakemake runs this in its working directory once the environment stands. As the Makefile does: fairseq without its own
# bounds, which resolve with no pip of today, and this repository, whose kernel is compiled.
set -euo pipefail
grep -qs '^name = "attention-pruning"' pyproject.toml || { echo "error: $PWD: expected the repository, where snakemake is to be run, found another folder" >&2; exit 2; }
pip install --no-deps fairseq==0.12.2
pip install --no-deps --no-build-isolation -e .
