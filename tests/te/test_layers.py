"""Transformer Engine's layers beside the local ones: names, logits, gradients, checkpoints, packed documents."""

import pytest

from tests.cpu.launch import run_distributed
from tests.cpu.tiny import make_model
from tests.hf_models import MODELS, make_hf_model
from tests.te.environment import PYTHON

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON.exists(), reason="`make te` makes .venv-te")]


def run(case, nproc=1, **arguments):
    return run_distributed(f"tests.te.cases:{case}", nproc, python=str(PYTHON), **arguments)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name in MODELS:
        make_hf_model(folder / name, name)
    return folder


def test_every_family_is_the_same_model_under_both(models):
    run("families", folder=str(models), models=list(MODELS))


def test_checkpoints_of_each_load_into_the_other(models):
    run("cross_loading", folder=str(models), models=["llama", "qwen3"])


def test_a_wrong_mapping_fails_parity(models):
    run("a_wrong_mapping_fails", folder=str(models / "llama"))


@pytest.mark.parametrize("pp", [1, 2])
def test_packed_pairs_have_the_losses_of_their_documents_alone(tmp_path, pp):
    run("packed_pairs", nproc=pp, model=str(make_model(tmp_path / "model")), pp=pp)
