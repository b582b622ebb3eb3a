# Thin targets over `python -m zoo | reproduce | evaluations | results`. `make help` explains each.
SHELL  := /bin/bash
PYTHON ?= python3
VENV   ?= .venv
PY     := $(VENV)/bin/python
READY  := $(VENV)/.installed
NEEDED_GB := 9
# One thread per process: on a busy machine two threads in one process run slower than one.
JOBS   ?= $(shell n=$$(getconf _NPROCESSORS_ONLN); echo $$(( n > 4 ? 4 : n )))
# worksteal: a worker that dies is one failed test; xdist's grouped schedules start that test again and end in a KeyError.
SPREAD := -n $(JOBS) --dist worksteal
DATASET ?= digits
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint reproduce evaluate rank bench paper tables tables-check figures site download test-faults test-gpu test-kills test-mutations test-browser test-lowest test-kernels throughput benchmarks

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## create .venv from pyproject.toml (once; again when pyproject.toml changes)

$(READY): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: no '$(PYTHON)' found; install Python 3.10 or newer, or say make PYTHON=/path/to/python" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $$($(PYTHON) --version) is too old; Python 3.10 or newer is needed: make PYTHON=/path/to/python" >&2; exit 2; }
	@if [ ! -x $(PY) ]; then \
	  mkdir -p $(VENV); free=$$(df -Pk $(VENV) | awk 'NR==2{print int($$4/1048576)}'); \
	  if [ "$$free" -lt $(NEEDED_GB) ]; then echo "error: $$free GB free here, about $(NEEDED_GB) GB are needed for $(VENV) (torch alone takes 6); free some, or say make VENV=/other/disk/venv" >&2; rmdir $(VENV); exit 2; fi; \
	  $(PYTHON) -m venv $(VENV) || { echo "error: $(PYTHON) -m venv failed; on Debian: apt-get install python3-venv" >&2; exit 2; }; fi
	@echo "installing into $(VENV) (once; some minutes, about 8 GB)"
	@$(PY) -m pip install --quiet --disable-pip-version-check --editable '.[dev]' || { echo "error: the installation stopped; mend what pip says above and run the same command again" >&2; exit 2; }
	@touch $@

demo: $(READY) ## pre-train, evaluate and tabulate on real images (DATASET=digits|fashion_mnist)
	$(PY) -m benchmarks.demo $(DATASET) $(ARGS)

test: $(READY) ## the whole test suite, golden numbers and table check included
	$(PY) -m pytest $(SPREAD) tests
	$(PY) -m results tables --check

# ATen and oneDNN choose their kernels by these two names: other sums, other orders, other faults than on a CPU with AVX-512.
test-kernels: $(READY) ## the tests that train, by the kernels of a CPU that has AVX2 only (2 minutes)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 $(PY) -m pytest $(SPREAD) tests/engine tests/reproduce tests/contracts tests/evaluations/test_tuning.py

lint: $(READY) ## ruff (rules and format) and mypy
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check -q .
	$(VENV)/bin/mypy zoo engine reproduce evaluations results benchmarks hubconf.py

reproduce: $(READY) ## pre-train MODEL=id on this machine's GPUS=n, or NODES=n GPUS=n SLURM=1 PARTITION=… TIME=… (ARGS="path=value … --plan", or --sbatch)
	@test -n "$(MODEL)" || { echo "error: make reproduce MODEL=<id>; ids: $(PY) -m zoo list" >&2; exit 2; }
	$(PY) -m $(if $(SLURM),reproduce slurm $(MODEL) nodes=$(or $(NODES),1) $(if $(GPUS),gpus=$(GPUS)) $(if $(PARTITION),partition=$(PARTITION)) $(if $(TIME),time=$(TIME)),$(if $(GPUS),torch.distributed.run --standalone --nproc_per_node=$(GPUS) -m )reproduce $(MODEL)) $(ARGS)

evaluate: $(READY) ## judge MODEL=id|run folder|file, on every protocol or PROTOCOL=id (ARGS="--plan")
	@test -n "$(MODEL)" || { echo "error: make evaluate MODEL=<id, run folder or file> [PROTOCOL=<id>]" >&2; exit 2; }
	$(PY) -m evaluations $(if $(PROTOCOL),run $(PROTOCOL),suite) $(MODEL) $(ARGS)

rank: $(READY) ## which backbone for the images of DATA=folder: every model at hand, ranks with ties (ARGS="models=PATTERN")
	@test -n "$(DATA)" || { echo "error: make rank DATA=<folder of images>" >&2; exit 2; }
	$(PY) -m evaluations rank $(DATA) $(ARGS)

bench: $(READY) ## make a laptop-scale table again: choose each recipe on val, measure every seed (DATASET=…; an hour or more; goes on when started again)
	$(PY) -m benchmarks.bench $(DATASET) $(ARGS)

paper: $(READY) ## fill TABLE=swav_zoo|pic|sela|…: fetch or pre-train, evaluate, what can run here (ARGS="--plan", ARGS="--sbatch")
	@test -n "$(TABLE)" || { echo "error: make paper TABLE=<id>; ids: ls results/tables" >&2; exit 2; }
	$(PY) -m results fill $(TABLE) $(ARGS)

tables: $(READY) ## regenerate results/tables/*.md and the marked blocks of README.md
	$(PY) -m results tables

tables-check: $(READY) ## fail when a table differs from the records
	$(PY) -m results tables --check

figures: $(READY) ## regenerate results/figures/
	$(PY) -m results figures

site: $(READY) ## static pages of the zoo, its methods, protocols and tables (runs/site)
	$(PY) -m results site

download: $(READY) ## fetch every released file, or PATTERN="swav_*" (gigabytes; each is checked)
	$(PY) -m zoo fetch $(if $(PATTERN),'$(PATTERN)',--all)

test-faults: $(READY) ## kill and restart real runs, the slow proofs (several minutes)
	$(PY) -m pytest tests -m slow

test-gpu: $(READY) ## the tests that need a GPU (not run on one yet)
	$(PY) -m pytest tests -m gpu

test-kills: $(READY) ## 176 SIGKILLs at random moments of short runs of every method and detector (ten minutes; ARGS="--kills 4 --to tests/KILLS.md")
	$(PY) -m tests.kills $(ARGS)

test-mutations: $(READY) ## plant each listed fault in a copy and see the tests fail (half an hour or more; goes on when started again)
	$(PY) -m tests.mutations $(ARGS)

test-browser: $(READY) ## the site in headless Chromium (Debian: apt-get install chromium chromium-driver)
	$(PY) -m pytest tests/browser -m browser

# What a bound can break: files, downloads, exports, numbers, tables, a training run and its evaluation.
LOWEST_TESTS ?= tests/zoo tests/weights tests/maths tests/results tests/data tests/engine/test_loop.py tests/engine/test_optim.py \
  tests/evaluations/test_evaluate_digits.py tests/evaluations/test_known_answers.py tests/contracts/test_every_method.py

test-lowest: ## the oldest versions that pyproject.toml permits, in a fresh .venv-lowest, on a short part of the tests (half an hour, about 8 GB)
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct --editable '.[dev]'
	.venv-lowest/bin/python -m pytest $(SPREAD) $(LOWEST_TESTS)

throughput: $(READY) ## what the training loop costs, and what precision and memory format gain here (minutes)
	$(PY) -m benchmarks.training $(ARGS)

benchmarks: $(READY) ## measure speed and memory beside the references, write benchmarks/RESULTS.md (10 minutes; ARGS="--list": what else there is)
	$(PY) -m benchmarks $(ARGS)
