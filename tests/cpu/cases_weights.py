"""What test_weights.py runs under torchrun."""

from __future__ import annotations

from pathlib import Path

LAYOUTS = [(1, 1), (2, 1), (1, 2), (2, 2)]


def import_and_check(folder: str, models: list[str], deep_model: str) -> None:
    """All that needs four processes, in one launch."""
    import_under_every_layout(folder, models)
    sequence_and_virtual_pipeline_parity(deep_model)


def import_under_every_layout(folder: str, models: list[str]) -> None:
    """Import each model under each layout, prove parity, save a checkpoint `<model>-tp-pp`."""
    from megatron_ext.config import ParallelConfig
    from megatron_ext.model.hf_import import ImportSettings, import_hf

    for tp, pp in LAYOUTS:
        parallel = ParallelConfig(tensor_model_parallel_size=tp, pipeline_model_parallel_size=pp)
        _lay_out(parallel)
        for model in models:
            import_hf(ImportSettings(model=Path(folder, model), parallel=parallel, parity_positions=64),
                      Path(folder, f"{model}-{tp}-{pp}"))


def sequence_and_virtual_pipeline_parity(model: str) -> None:
    """Parity under sequence parallelism, and with two virtual stages on each of two pipeline ranks."""
    import torch.distributed as dist

    from megatron_ext.config import ModelConfig, ParallelConfig
    from megatron_ext.model.gpt import build_model
    from megatron_ext.model.hf_weights import load_hf_weights
    from megatron_ext.model.megatron_parity import check_chunks

    for parallel in (
        ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2, sequence_parallel=True),
        ParallelConfig(tensor_model_parallel_size=2, pipeline_model_parallel_size=2,
                       virtual_pipeline_model_parallel_size=2),
    ):
        _lay_out(parallel)
        chunks = build_model(ModelConfig(hf_folder=Path(model), dtype="float32"), parallel)
        load_hf_weights(chunks, Path(model))
        verdict = check_chunks(chunks, Path(model), "float32", 64)
        if dist.get_rank() == 0:
            print(verdict.line("parity"))
        verdict.require()


def _lay_out(parallel: object) -> None:
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
