"""Transformer Engine's layers beside the local ones: names, logits, gradients, checkpoints, packed documents."""

import pytest

from tests.cpu.launch import run_distributed
from tests.cpu.tiny import make_model
from tests.hf_models import MODELS, make_hf_model
from tests.te.environment import PYTHON

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON.exists(), reason="`make te` makes .venv-te")]


def run(case, nproc=1, **arguments):
    return run_distributed(f"tests.te.cases:{case}", nproc, python=str(PYTHON), **arguments)


def test_every_family_is_the_same_model_under_both(tmp_path):
    """Names, logits, gradients; checkpoints of each load into the other; a wrong mapping fails; packed documents."""
    for name in MODELS:
        make_hf_model(tmp_path / name, name)
    run("one_process", folder=str(tmp_path), models=list(MODELS), loaded=["llama", "qwen3"],
        packed=str(make_model(tmp_path / "packed")))


def test_packed_pairs_have_the_losses_of_their_documents_alone_in_a_pipeline(tmp_path):
    run("packed_pairs", nproc=2, model=str(make_model(tmp_path / "model")), pp=2)
