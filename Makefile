# `make figure` and `make test` are all a newcomer needs; `make help` lists the rest.
PYTHON ?= python3
CONFIG ?= quick
CORES ?= $(shell nproc 2>/dev/null || sysctl -n hw.ncpu 2>/dev/null || echo 1)
WORKERS ?= 2

VENV := .venv
RUN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
SNAKEFILES := Snakefile rules

# Names the missing piece and the way to get it; run by the interpreter that is to make (or made) the environment.
define CHECK_PYTHON
import sys
if sys.version_info < (3, 11):
    found = ".".join(map(str, sys.version_info[:3]))
    sys.exit(f"error: Python 3.11 or newer is needed, {sys.executable} is {found}; install one and run: make PYTHON=python3.11 ...")
try:
    import ensurepip, venv
except ImportError:
    sys.exit("error: Python's venv module is missing; install it, for example with: apt-get install python3-venv")
endef
export CHECK_PYTHON

# An environment keeps the interpreter that made it.
define SAME_PYTHON
import sys
if str(sys.version_info[:2]) != sys.argv[1]:
    made = ".".join(map(str, sys.version_info[:2]))
    sys.exit(f"error: PYTHON: expected that of the environment, which Python {made} made, found another version; make distclean first")
endef
export SAME_PYTHON

ifeq ($(origin CXX),default)
CXX := $(shell command -v c++ >/dev/null && echo c++ || echo g++)
endif

COMPILER := { command -v $${CXX:-c++} || command -v g++; } >/dev/null
define NO_COMPILER
warning: no C++ compiler was found: fairseq, which translation needs, and the kernel for CPUs are left out. Get one, for example with: \
apt-get install g++ python3-dev, and say make install again; without it: snakemake language_modelling glue --cores 2
endef

.PHONY: help install figure set-aside same-python report test test-fast torture browser lint docs sanitize fuzz unlock clean distclean
.DEFAULT_GOAL := help

help:
	@echo "make figure     train, prune, retrain, draw: results/ap_figure.png   (CONFIG=$(CONFIG), CORES=$(CORES)); FRESH=1: all anew"
	@echo "make report     every figure and table, the explorer of every site, run times in one file: results/report.html   (CONFIG, CORES)"
	@echo "make test       checks and all tests                                 (WORKERS=$(WORKERS))"
	@echo "make test-fast  the tests that are not slow, with few examples of each law  (WORKERS)"
	@echo "make browser    a Chromium for the tests of the explorer, which are skipped where there is none"
	@echo "make torture    kill runs at random and start them again, three quarters of an hour; figures in results/reliability.csv"
	@echo "make lint       checks alone"
	@echo "make docs       the documentation as a site: build/site/index.html"
	@echo "make install    the virtual environment alone, which the others make where it is missing"
	@echo "make sanitize   the C++ kernel under AddressSanitizer and UBSan; PROBLEMS=10000 for as many random problems"
	@echo "make fuzz       10,000 damaged files of every kind, where make test reads 200: half an hour or more   (WORKERS, EXAMPLES)"
	@echo "make unlock     after a crash on a file system without locks, if Snakemake says that the directory is locked"
	@echo "make clean      remove what was computed for one configuration       (CONFIG=$(CONFIG), SURE=1: without asking)"
	@echo "make distclean  remove the environment and Snakemake's records too"
	@echo "CONFIG is one of: $(basename $(notdir $(filter-out %/schema.yaml,$(wildcard config/*.yaml)))). The environment is $(VENV), made with PYTHON=$(PYTHON)."

figure: config/$(CONFIG).yaml $(INSTALLED) $(if $(FRESH),set-aside)
	@$(RUN)/python -m reproduction.runs.watch --runs runs/$(CONFIG) -- $(RUN)/snakemake figure --cores $(CORES) --configfile config/$(CONFIG).yaml
	@echo
	@$(RUN)/python -m reproduction.analysis.figures ap_figure --metrics results/$(CONFIG)/metrics.csv --table
	@echo
	@$(RUN)/python -m reproduction.runs.source --runs runs/$(CONFIG)
	@echo "The figure is results/ap_figure.png, its caption results/ap_figure.md, all numbers results/$(CONFIG)/metrics.csv;"
	@echo "each task of panel (c) by itself: results/$(CONFIG)/glue_tasks.png."

install: $(INSTALLED)

# Runs that other source made are kept, under a name of their own.
set-aside:
	@for folder in runs/$(CONFIG) results/$(CONFIG); do if test -d $$folder; then aside=$$folder.before-$$(date +%Y%m%dT%H%M%S); \
		mv $$folder $$aside && echo "FRESH: $$folder is now $$aside"; fi; done

# What only draws or sums up: a report shows what is there, and never trains.
DRAWING := shown configuration summarise_runs draw_ap_figure draw_glue_tasks draw_controls draw_pattern_gallery \
	explore draw_structural_zeros draw_translation_sites draw_entmax_comparison draw_mask_comparison draw_pairs_comparison \
	draw_efficiency_table draw_language_model_efficiency

report: config/$(CONFIG).yaml $(INSTALLED)
	@test -f results/$(CONFIG)/metrics.csv || { echo "error: results/$(CONFIG)/metrics.csv: expected what make figure CONFIG=$(CONFIG) leaves, found nothing; a report shows what is there" >&2; exit 2; }
	@$(RUN)/snakemake shown --cores $(CORES) --configfile config/$(CONFIG).yaml --allowed-rules $(DRAWING)
	@$(RUN)/snakemake shown --configfile config/$(CONFIG).yaml --report results/report.html
	@$(RUN)/python -m reproduction.runs.source --runs runs/$(CONFIG)
	@echo "The report is results/report.html; it needs no connection."

config/%.yaml:
	@echo "error: CONFIG=$*: there is no $@; see config/" >&2; exit 2

# A worker takes whole files, in the order of tests/conftest.py.
PYTEST := OMP_NUM_THREADS=1 $(RUN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: lint
	$(PYTEST)

# Tests alone, for while one works.
test-fast: $(INSTALLED)
	AP_FAST_TESTS=1 $(PYTEST) -m "not slow"

browser: $(INSTALLED)
	$(RUN)/playwright install --with-deps --no-shell chromium

# What went well before, by the rows of that table, is not repeated, so that it can be interrupted.
torture: $(INSTALLED)
	OMP_NUM_THREADS=1 $(RUN)/python tests/torture/battery.py --out results/reliability.csv
	OMP_NUM_THREADS=1 $(RUN)/python tests/torture/workflow.py --out results/reliability.csv

# Settings stand beside their rules, the one thing that Snakemake would have otherwise.
define LINTED
import re, subprocess, sys
done = subprocess.run(sys.argv[1:], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
lints = re.findall(r"^    \* (.*):$$", done.stdout, re.M)
if set(lints) - {"Mixed rules and functions in same snakefile."} or done.returncode and not lints:
    sys.exit(done.stdout)
endef
export LINTED

lint: $(INSTALLED)
	$(RUN)/ruff check .
	$(RUN)/snakefmt --check $(SNAKEFILES)
	@$(RUN)/python -c "$$LINTED" $(RUN)/snakemake --lint

# The site is made from Markdown and docstrings alone, so its environment has none of the experiments' packages.
DOCS := .venv-docs
define DOCS_PINS
import tomllib
print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])
endef
export DOCS_PINS

docs: $(DOCS)/.installed
	$(DOCS)/bin/mkdocs build --strict
	@echo "The site is build/site/index.html."

$(DOCS)/.installed: pyproject.toml
	@$(PYTHON) -c "$$CHECK_PYTHON"
	@test -x $(DOCS)/bin/python || $(PYTHON) -m venv $(DOCS)
	@$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check $$($(DOCS)/bin/python -c "$$DOCS_PINS")
	@touch $@

same-python:
	@test ! -x $(RUN)/python || $(RUN)/python -c "$$SAME_PYTHON" "$$($(PYTHON) -c 'import sys; print(sys.version_info[:2])')"

$(INSTALLED): requirements.lock pyproject.toml $(wildcard setup.py attention_pruning/ops/cpu/csrc/*.h attention_pruning/ops/cpu/csrc/*.cpp) \
		| $(if $(filter-out file,$(origin PYTHON)),same-python)
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) was not found; Python 3.11 or newer is needed: python.org, or apt-get install python3 python3-venv" >&2; exit 2; }
	@$(PYTHON) -c "$$CHECK_PYTHON"
	@echo "Making $(VENV): about 2 GB, some minutes."
	@test -x $(RUN)/python || $(PYTHON) -m venv $(VENV)
	@$(RUN)/python -c "$$CHECK_PYTHON"
	@$(RUN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(COMPILER) || { echo "$(NO_COMPILER)" >&2; exit 0; }; $(RUN)/python -m pip install --quiet --disable-pip-version-check --no-deps fairseq==0.12.2
	@$(RUN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@! $(COMPILER) || touch $@

# The C++ kernel under AddressSanitizer and UndefinedBehaviorSanitizer, in the builds that this processor runs.
SANITIZE := -std=gnu++17 -O1 -g -fopenmp -fsanitize=address,undefined -fno-sanitize-recover=all -Wno-psabi -Iattention_pruning/ops/cpu/csrc
SANITIZED_BUILDS := $(if $(filter x86_64,$(shell uname -m)),x86-64 $(if $(shell grep -m1 avx2 /proc/cpuinfo 2>/dev/null),x86-64-v3) $(if $(shell grep -m1 avx512dq /proc/cpuinfo 2>/dev/null),x86-64-v4),native)
# Beside a vector width, what the processor is asked for when it runs.
SANITIZE_ASKED_x86-64-v4 := -mavx512bf16 -mamx-tile -mamx-bf16

sanitize:
	@mkdir -p build
	@$(foreach march,$(SANITIZED_BUILDS),$(CXX) $(SANITIZE) -march=$(march) $(SANITIZE_ASKED_$(march)) \
		tests/attention_pruning/sanitize_block_sparse.cpp -o build/sanitize && build/sanitize $(PROBLEMS) &&) true

# Damaged files of every kind that something here reads, the same ones in every run; and as many layouts made and dropped.
EXAMPLES ?= 10000
fuzz: $(INSTALLED)
	FUZZ_EXAMPLES=$(EXAMPLES) OMP_NUM_THREADS=1 $(RUN)/python -m pytest -n $(WORKERS) --dist load tests/fuzz tests/attention_pruning/test_load.py

unlock: $(INSTALLED)
	@$(RUN)/snakemake --unlock

clean:
	@test -n "$(SURE)" || { test -t 0 && printf 'Remove runs/$(CONFIG) and results/$(CONFIG), and train again next time? [y/N] ' && read answer && test "$$answer" = y; } \
		|| { echo "error: make clean CONFIG=$(CONFIG): expected y, or SURE=1 on the command line, before runs/$(CONFIG) is removed, found neither" >&2; exit 2; }
	rm -rf runs/$(CONFIG) results/$(CONFIG) results/ap_figure.png results/ap_figure.md results/ap_figure.log \
		results/report.html results/efficiency_table.md results/efficiency_table.log

distclean: clean
	rm -rf $(VENV) $(DOCS) .snakemake *.egg-info build
