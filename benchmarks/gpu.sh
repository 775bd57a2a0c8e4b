#!/bin/sh
# All that is to be measured on a GPU, in less than eight minutes: attention by itself, then whole models. Arguments go to
# both:  sh benchmarks/gpu.sh --out results/benchmarks     or, tiny and on the CPU,     sh benchmarks/gpu.sh --dry_run
set -e
here=$(dirname "$0")
"${PYTHON:-python3}" "$here/block_sparse_gpu.py" "$@"
"${PYTHON:-python3}" "$here/models_gpu.py" "$@"
