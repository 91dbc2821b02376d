"""Whole runs with Transformer Engine's layers and its FusedAdam: every layout beside one process with local layers.

In float32, where the stand-in multiplies exactly, losses and saved weights are those of the local layers and of
torch.optim.AdamW to rounding; in bfloat16 the layouts agree with each other.
"""

import json
import re
import shutil

import numpy as np
import pytest

from megatron_ext.model.hf_export import write_hf_folder
from tests.cpu.launch import run_distributed
from tests.cpu.test_grid import APART, ITERATIONS, OVERLAP, PLAIN, PP2, SP, TP2, VPP2, assert_equal_runs, settings
from tests.cpu.test_training import events, losses
from tests.te.environment import PYTHON
from tests.te.test_layers import run

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not PYTHON.exists(), reason="`make te` makes .venv-te")]
TE = {"layer_implementation": "transformer_engine"}
BF16 = TE | {"dtype": "bfloat16"}
LAYOUTS = {
    1: {"one_process": {}, "plain_optimizer": PLAIN},
    2: {"tp2_sp": TP2 | SP, "pp2_vpp2": PP2 | VPP2, "dp2_plain": PLAIN, "dp2_overlap": OVERLAP},
    4: {"tp2_pp2_sp_vpp2": TP2 | PP2 | SP | VPP2, "tp2_dp2_sp_overlap": TP2 | SP | OVERLAP},
}
OTHERS = {
    1: {"recompute": {"model": {"recompute_activations": True}}, "asynchronous": {"checkpoint": {"asynchronous": True}},
        "documents-one_process": {"data": APART}, "bf16-one_process": {"model": BF16}},
    2: {"documents-tp2_sp": {"data": APART, "parallel": TP2 | SP}, "documents-pp2": {"data": APART, "parallel": PP2},
        "documents-recompute": {"data": APART, "model": {"recompute_activations": True}}},
    4: {"bf16-tp2_pp2_sp": {"model": BF16, "parallel": TP2 | PP2 | SP},
        "bf16-tp2_dp2_overlap": {"model": BF16, "parallel": TP2 | OVERLAP}},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return settings(tmp_path_factory.mktemp("te"))


@pytest.fixture(scope="module")
def grid(base, tmp_path_factory):
    """Every run, one launch for each number of processes."""
    folder = tmp_path_factory.mktemp("grid")
    for num_processes, layouts in LAYOUTS.items():
        variants = {name: {"parallel": layout} for name, layout in layouts.items()} | OTHERS[num_processes]
        output = run("kernels_of_runs", num_processes, base=with_te(base, folder), variants=variants)
        [kernels] = [json.loads(line) for line in re.findall(r"kernels: (.*)", output)]
        assert kernels["multi_tensor_adam"] and kernels["multi_tensor_l2norm"] and kernels["generic_gemm"]
    return folder


@pytest.fixture(scope="module")
def local(base, tmp_path_factory):
    """One process with local layers, where Transformer Engine is not installed."""
    folder = tmp_path_factory.mktemp("local")
    run_distributed("tests.cpu.cases_training:runs", 1, base=base | {"output": str(folder)},
                    variants={"one_process": {}, "documents-one_process": {"data": APART}})
    return folder


def with_te(base, folder):
    return base | {"output": str(folder), "model": base["model"] | TE}


def weights(run_folder, folder):
    """The weights of a run's last checkpoint, as exported."""
    from safetensors.numpy import load_file

    checkpoint = max((run_folder / "checkpoints").glob("iter_*"))
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    write_hf_folder(checkpoint, folder, dtype="float32")
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("name", [name for layouts in LAYOUTS.values() for name in layouts] + [
    "recompute", "asynchronous"])
def test_every_layout_gives_the_losses_and_weights_of_local_layers(grid, local, name, tmp_path):
    assert_equal_runs(grid / name, local / "one_process")
    assert_equal_weights(grid / name, local / "one_process", tmp_path)


@pytest.mark.parametrize("name", [name for others in OTHERS.values() for name in others if name.startswith("doc")])
def test_packed_documents_give_the_losses_and_weights_of_masked_ones(grid, local, name, tmp_path):
    assert_equal_runs(grid / name, local / "documents-one_process")
    assert_equal_weights(grid / name, local / "documents-one_process", tmp_path)
    assert losses(local / "documents-one_process") != losses(local / "one_process")


def assert_equal_weights(ours, theirs, folder):
    ours, theirs = weights(ours, folder / "ours"), weights(theirs, folder / "theirs")
    assert ours.keys() == theirs.keys()
    for name, expected in theirs.items():
        np.testing.assert_allclose(ours[name], expected, atol=2e-4, err_msg=name)


@pytest.mark.parametrize("name", ["bf16-tp2_pp2_sp", "bf16-tp2_dp2_overlap"])
def test_bfloat16_layouts_agree(grid, name):
    np.testing.assert_allclose(losses(grid / name), losses(grid / "bf16-one_process"), atol=5e-3)


def test_a_resumed_run_is_the_undisturbed_one_to_the_bit(base, tmp_path):
    """In bfloat16 and float32, with both optimizers, documents packed."""
    base = with_te(base, tmp_path) | {"checkpoint": {"interval_tokens": ITERATIONS // 2 * 8 * 32, "keep_last": 5}}
    variants = {"bf16": {"model": BF16, "parallel": OVERLAP}, "documents": {"data": APART, "parallel": PLAIN}}
    output = run("resumed_runs", 2, base=base, variants=variants, first=ITERATIONS // 2)
    assert output.count(f"resumed after iteration {ITERATIONS // 2}") == len(variants)
    for name in variants:
        again, first = tmp_path / f"{name}-resumed", tmp_path / name
        assert losses(again) == losses(first)
        assert [row["grad_norm"] for row in events(again, "train")] == [
            row["grad_norm"] for row in events(first, "train")]
        ours, theirs = weights(again, tmp_path / "a"), weights(first, tmp_path / "b")
        assert all(np.array_equal(ours[key], theirs[key]) for key in theirs)


def test_a_run_of_local_layers_is_not_gone_on_with(base, local, tmp_path):
    """One line: the layers are part of what a run is."""
    shutil.copytree(local / "one_process", tmp_path / "one_process")
    (tmp_path / "one_process" / "manifest.json").unlink()
    with pytest.raises(AssertionError, match=r"model\.layer_implementation was 'local', is 'transformer_engine'"):
        run("kernels_of_runs", base=with_te(base, tmp_path), variants={"one_process": {}})
