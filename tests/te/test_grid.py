"""Whole runs with Transformer Engine's layers and its FusedAdam: every layout beside one process with local layers.

In float32, where the stand-in multiplies exactly, losses, saved weights and optimizer states are those of the local
layers and of torch.optim.AdamW to rounding; in bfloat16 the layouts agree with each other.
"""

import json
import re
import shutil

import numpy as np
import pytest

from tests.cpu.launch import run_distributed
from tests.cpu.test_grid import (
    APART,
    OVERLAP,
    PLAIN,
    PP2,
    SP,
    STOP_AFTER_ONE,
    TP2,
    VPP2,
    assert_equal_runs,
    num_different,
    settings,
)
from tests.cpu.test_training import losses
from tests.te.environment import PYTHON
from tests.te.test_layers import run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON.exists(), reason="`make te` makes .venv-te")]
TE, BF16 = {"layer_implementation": "transformer_engine"}, {"model": {"dtype": "bfloat16"}}
LAYOUTS = {
    1: {"one_process": {}, "plain_optimizer": PLAIN},
    2: {"tp2_sp": TP2 | SP, "pp2_vpp2": PP2 | VPP2, "dp2_plain": PLAIN, "dp2_overlap": OVERLAP},
    4: {"tp2_pp2_sp_vpp2": TP2 | PP2 | SP | VPP2, "tp2_dp2_sp_overlap": TP2 | SP | OVERLAP},
}
OTHERS = {
    1: {"recompute": {"model": {"recompute_activations": True}}, "asynchronous": {"checkpoint": {"asynchronous": True}},
        "bf16-one_process": BF16, "documents-one_process": {"data": APART}},
    2: {"bf16-dp2_overlap": BF16 | {"parallel": OVERLAP}, "documents-tp2_sp": {"data": APART, "parallel": TP2 | SP},
        "documents-pp2": {"data": APART, "parallel": PP2},
        "documents-recompute": {"data": APART, "model": {"recompute_activations": True}}},
    4: {"bf16-tp2_pp2_sp": BF16 | {"parallel": TP2 | PP2 | SP}},
}
INTERRUPTED = {2: ("dp2_plain", "bf16-dp2_overlap", "documents-pp2")}


def variants(num_processes):
    """Name -> changes of the settings; an interrupted run is started twice."""
    named = {name: {"parallel": layout} for name, layout in LAYOUTS[num_processes].items()} | OTHERS[num_processes]
    return named | {f"interrupted-{name}{attempt}": named[name] | changes
                    for name in INTERRUPTED.get(num_processes, ())
                    for attempt, changes in (("", STOP_AFTER_ONE), ("#again", {}))}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return settings(tmp_path_factory.mktemp("te"))


@pytest.fixture(scope="module")
def local(base, tmp_path_factory):
    """One process with local layers, where Transformer Engine is not installed."""
    folder = tmp_path_factory.mktemp("local")
    run_distributed("tests.cpu.cases_training:runs", 1, base=base | {"output": str(folder)}, variants={
        "one_process": {}, "documents-one_process": {"data": APART}, "stopped": STOP_AFTER_ONE,
        "stopped-plain": STOP_AFTER_ONE | {"parallel": PLAIN}})
    return folder


@pytest.fixture(scope="module")
def grid(base, local, tmp_path_factory):
    """Every run, one launch for each number of processes; among those of one process runs that local ones began."""
    folder = tmp_path_factory.mktemp("grid")
    for name in ("stopped", "stopped-plain"):
        shutil.copytree(local / name, folder / name)
    begun = {"stopped": {}, "stopped-plain": {"parallel": PLAIN}, "begun": STOP_AFTER_ONE}
    for num_processes in LAYOUTS:
        output = run("kernels_of_runs", num_processes, base=with_te(base, folder), timeout_seconds=500,
                     variants=variants(num_processes) | (begun if num_processes == 1 else {}))
        [kernels] = [json.loads(line) for line in re.findall(r"kernels: (.*)", output)]
        assert kernels["multi_tensor_adam"] and kernels["multi_tensor_l2norm"] and kernels["generic_gemm"]
    return folder


def with_te(base, folder):
    return base | {"output": str(folder), "model": base["model"] | TE}


@pytest.mark.parametrize("name", [name for layouts in LAYOUTS.values() for name in layouts] + [
    "recompute", "asynchronous"])
def test_every_layout_gives_the_losses_and_weights_of_local_layers(grid, local, name):
    assert_equal_runs(grid / name, local / "one_process")


@pytest.mark.parametrize("name", [name for others in OTHERS.values() for name in others if name.startswith("doc")])
def test_packed_documents_give_the_losses_and_weights_of_masked_ones(grid, local, name):
    assert_equal_runs(grid / name, local / "documents-one_process")
    assert losses(local / "documents-one_process") != losses(local / "one_process")


@pytest.mark.parametrize("name", ["bf16-dp2_overlap", "bf16-tp2_pp2_sp"])
def test_bfloat16_layouts_agree(grid, name):
    np.testing.assert_allclose(losses(grid / name), losses(grid / "bf16-one_process"), atol=5e-3)


@pytest.mark.parametrize("name", [name for names in INTERRUPTED.values() for name in names])
def test_an_interrupted_run_ends_with_the_bits_of_an_undisturbed_one(grid, name):
    assert losses(grid / f"interrupted-{name}") == losses(grid / name)
    assert num_different(grid / f"interrupted-{name}", grid / name) == 0


@pytest.mark.parametrize("name", ["stopped", "stopped-plain"])
def test_transformer_engine_goes_on_with_a_run_that_local_layers_began(grid, local, name):
    assert_equal_runs(grid / name, local / "one_process")


def test_local_layers_go_on_with_a_run_that_transformer_engine_began(base, grid, local):
    run_distributed("tests.cpu.cases_training:runs", 1, base=base | {"output": str(grid)}, variants={"begun": {}})
    assert_equal_runs(grid / "begun", local / "one_process")
