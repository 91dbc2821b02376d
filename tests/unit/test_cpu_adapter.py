"""megatron-core on a CPU: only megatron sees the adapted torch, and each fix mends its symptom."""

import subprocess
import sys

import pytest
import torch

import megatron_ext.model  # noqa: F401  # before megatron

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="the adapter does nothing where CUDA is")


def run(code):
    result = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_importing_the_packages_does_not_import_torch():
    assert run("import sys, megatron_ext.model, megatron_ext.training; print('torch' in sys.modules)") == "False\n"


def test_megatron_before_the_adapter_is_refused():
    code = ("import megatron.core\ntry:\n    import megatron_ext.model\nexcept ImportError as error:\n"
            "    print(error)")
    assert "import megatron_ext.model first" in run(code)


def test_only_megatron_sees_the_adapted_torch():
    from megatron.core.tensor_parallel import layers

    assert layers.torch is not torch
    assert layers.torch.cuda.current_device() == torch.device("cpu")
    assert layers.torch.empty(2, device="cuda").device.type == "cpu"
    assert layers.torch.zeros(2, device=0).device.type == "cpu"
    assert layers.torch.Tensor is torch.Tensor
    assert layers.torch.nn.functional is torch.nn.functional
    with pytest.raises((AssertionError, RuntimeError), match=r"CUDA|NVIDIA"):  # the second from a torch for CUDA
        torch.empty(2, device="cuda")
    import transformers.modeling_utils

    assert transformers.modeling_utils.torch is torch


def test_random_states_are_those_of_the_cpu():
    from megatron.core.tensor_parallel import random

    random.torch.cuda.manual_seed(5)
    state = random.torch.cuda.get_rng_state()
    first = torch.rand(3)
    random._set_cuda_rng_state(state)
    assert torch.rand(3).equal(first)


def test_streams_and_events_are_there():
    from megatron.core.tensor_parallel import layers

    cuda = layers.torch.cuda
    with cuda.stream(cuda.Stream()):
        event = cuda.Event(enable_timing=True)
        event.record(cuda.current_stream())
        cuda.current_stream().wait_event(event)
        cuda.synchronize()
    assert event.query()
    assert cuda.max_memory_allocated() == 0


@pytest.fixture
def trained(tmp_path):
    """A tiny model and its distributed optimizer after one update, under one process."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    from megatron_ext.config import ModelConfig, ParallelConfig
    from megatron_ext.model.distributed import single_process
    from megatron_ext.model.gpt import build_model
    from megatron_ext.model.hf_weights import load_hf_weights
    from tests.hf_models import make_hf_model

    folder = make_hf_model(tmp_path)

    def build():
        [chunk] = build_model(ModelConfig(hf_folder=folder, dtype="float32"), ParallelConfig())
        load_hf_weights([chunk], folder)
        model = DistributedDataParallel(chunk.config, DistributedDataParallelConfig(use_distributed_optimizer=True),
                                        chunk)
        optimizer = get_megatron_optimizer(
            OptimizerConfig(optimizer="adam", lr=1e-3, use_distributed_optimizer=True, clip_grad=1.0), [model])
        return model, optimizer

    def step(model, optimizer):
        model.zero_grad_buffer()
        optimizer.zero_grad()
        tokens = torch.arange(16)[None]
        model(tokens, tokens, None, labels=tokens).mean().backward()
        model.finish_grad_sync()
        optimizer.step()

    with single_process():
        yield build, step


def sharded_state(model, optimizer, is_loading):
    from megatron.core import parallel_state

    metadata = {"distrib_optim_sharding_type": "fully_reshardable", "chained_optim_avoid_prefix": True,
                "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}
    state = {"model": model.module.sharded_state_dict(metadata=dict(metadata))}
    state["optimizer"] = optimizer.sharded_state_dict(state, is_loading=is_loading, metadata=dict(metadata))
    return state


def test_a_resumed_optimizer_counts_one_step_an_update(trained, tmp_path):
    """After a load every parameter has its own step count; shared, one update would count as many as there are."""
    from megatron.core import dist_checkpointing

    build, step = trained
    model, optimizer = build()
    step(model, optimizer)
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    dist_checkpointing.save(sharded_state(model, optimizer, False), str(folder))

    resumed, resumed_optimizer = build()  # state_dict() of an optimizer that has made no step is needed here
    loaded = dist_checkpointing.load(sharded_state(resumed, resumed_optimizer, True), str(folder))
    resumed.module.load_state_dict(loaded["model"], strict=False)
    resumed_optimizer.load_state_dict(loaded["optimizer"])
    entries = [entry for inner in resumed_optimizer.chained_optimizers for entry in inner.optimizer.state.values()]
    assert len(entries) > 3
    assert len({id(entry["step"]) for entry in entries}) == len(entries)

    step(model, optimizer)
    step(resumed, resumed_optimizer)
    assert {entry["step"].item() for entry in entries} == {2.0}
    for ours, theirs in zip(resumed.parameters(), model.parameters(), strict=True):
        assert ours.equal(theirs)
