"""What test_weights.py runs under torchrun."""

from __future__ import annotations

from pathlib import Path

from megatron_ext.config import ModelConfig, ParallelConfig
from megatron_ext.model.hf_config import read_architecture
from megatron_ext.model.hf_export import HF_METADATA
from megatron_ext.model.hf_files import copy_hf_metadata

LAYOUTS = [(1, 1), (2, 1), (1, 2), (2, 2)]


def import_and_check(folder: str, models: list[str], deep_model: str) -> None:
    """All that needs four processes, in one launch."""
    for tp, pp in LAYOUTS:
        parallel = ParallelConfig(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp)
        _lay_out(parallel)
        for model in models:
            _load_prove_and_save(Path(folder), model, parallel)
    sequence_and_virtual_pipeline_parity(Path(deep_model))


def _load_prove_and_save(folder: Path, model: str, parallel: ParallelConfig) -> None:
    """Read the weights, prove parity, save the layout's checkpoint; the streamed checkpoint must load as the same."""
    import torch
    import torch.distributed as dist
    from megatron.core import dist_checkpointing

    from megatron_ext.model.checkpoints import load_model, sharded_model_state
    from megatron_ext.model.gpt import build_model
    from megatron_ext.model.hf_weights import load_hf_weights
    from megatron_ext.model.megatron_parity import check_chunks

    chunks = build_model(ModelConfig(hf_folder=folder / model, dtype="float32"), parallel)
    load_hf_weights(chunks, folder / model)
    check_chunks(chunks, folder / model, "float32", 64).require()
    for chunk in chunks:
        chunk.to(getattr(torch, read_architecture(folder / model).dtype))

    target = folder / f"{model}-{parallel.tensor_model_parallel_size}-{parallel.pipeline_model_parallel_size}"
    if dist.get_rank() == 0:
        target.mkdir()
        copy_hf_metadata(folder / model, target / HF_METADATA)
    dist.barrier()
    dist_checkpointing.save(sharded_model_state(chunks), str(target))

    direct = [parameter.detach().clone() for chunk in chunks for parameter in chunk.parameters()]
    for chunk in chunks:
        for parameter in chunk.parameters():
            torch.nn.init.zeros_(parameter)
    load_model(chunks, folder / f"{model}-streamed")
    for expected, parameter in zip(direct, (p for chunk in chunks for p in chunk.parameters()), strict=True):
        assert parameter.equal(expected)


def sequence_and_virtual_pipeline_parity(model: Path) -> None:
    """Parity under sequence parallelism, and with two virtual stages on each of two pipeline ranks."""
    import torch.distributed as dist

    from megatron_ext.model.gpt import build_model
    from megatron_ext.model.hf_weights import load_hf_weights
    from megatron_ext.model.megatron_parity import check_chunks

    for parallel in (
        ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2, sequence_parallel=True),
        ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2,
                       virtual_pipeline_model_parallel_size=2),
    ):
        _lay_out(parallel)
        chunks = build_model(ModelConfig(hf_folder=model, dtype="float32"), parallel)
        load_hf_weights(chunks, model)
        verdict = check_chunks(chunks, model, "float32", 64)
        if dist.get_rank() == 0:
            print(verdict.line("parity"))
        verdict.require()


def _lay_out(parallel: ParallelConfig) -> None:
    """Join the groups of a layout; those of the layout before are left."""
    import torch.distributed as dist
    from megatron.core import parallel_state

    from megatron_ext.training.parallel import initialize_parallel

    if not dist.is_initialized():
        initialize_parallel(parallel)
        return
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(
        parallel.tensor_model_parallel_size, parallel.pipeline_model_parallel_size,
        parallel.virtual_pipeline_model_parallel_size)
