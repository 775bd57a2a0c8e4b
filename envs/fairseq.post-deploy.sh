#!/usr/bin/env bash
# Snakemake runs this once the environment stands: fairseq's own bounds on its needs resolve with no pip of today.
set -euo pipefail
pip install --no-deps fairseq==0.12.2
