"""The logits of a model under its layout, compared with those of transformers.

Shapes: s = positions of the text, c = this rank's part of them (s / cp), v = vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.tensor_parallel import gather_from_tensor_model_parallel_region
from megatron.core.transformer import TransformerConfig
from torch import Tensor

from megatron_ext.config import ModelConfig, ParallelConfig
from megatron_ext.model.checkpoints import load_model
from megatron_ext.model.distributed import single_process
from megatron_ext.model.gpt import build_model, compute_device
from megatron_ext.model.layers import gather_sequence, positions_on_this_rank
from megatron_ext.model.parity import Parity, compare_logits, multiplied_in, parity_tokens, reference_logits


def check_chunks(chunks: list[GPTModel], hf_folder: Path, dtype: str, num_positions: int,
                 rounded_to: str | None = None) -> Parity:
    """Compare this layout's model with transformers; all ranks call it and get the same verdict.

    Args:
        dtype: type that the model computes in.
        rounded_to: type that the folder's weights are rounded to before, as those of the model were; None: `dtype`.
    """
    config = chunks[0].config
    tokens = parity_tokens(hf_folder, num_positions, _multiple_of(config))
    logits = megatron_logits(chunks, tokens)
    verdict: list[Parity | None] = [None]
    reporter = _first_rank_of_last_stage()
    if dist.get_rank() == reporter:
        assert logits is not None
        reference = reference_logits(hf_folder, tokens, rounded_to or dtype)
        verdict[0] = compare_logits(reference, logits, multiplied_in(dtype, config.transformer_impl), _describe(chunks))
    dist.broadcast_object_list(verdict, src=reporter)
    assert verdict[0] is not None
    return verdict[0]


def check_export(checkpoint: Path, hf_folder: Path, num_positions: int, dtype: str = "float32") -> Parity:
    """Compare a Megatron checkpoint, loaded into one process, with the Hugging Face folder made from it."""
    with single_process():
        chunks = build_model(ModelConfig(hf_folder=hf_folder, dtype=dtype), ParallelConfig())
        load_model(chunks, checkpoint)
        _round_to(chunks, getattr(torch, chunks[0].architecture.dtype))
        return check_chunks(chunks, hf_folder, dtype, num_positions)


def _round_to(chunks: list[GPTModel], stored: torch.dtype) -> None:
    """Give the weights the precision that they were exported with; what is computed in stays."""
    for chunk in chunks:
        for parameter in chunk.parameters():
            parameter.data.copy_(parameter.data.to(stored))


def megatron_logits(chunks: list[GPTModel], tokens: Tensor) -> Tensor | None:
    """Logits `[s, v]` through megatron-core's pipeline schedule; on the last pipeline stage, None elsewhere."""
    tokens = tokens.to(compute_device())
    for chunk in chunks:
        chunk.eval()
    config = chunks[0].config
    # The interleaved schedule wants a micro-batch for each stage; they are all the same one.
    num_microbatches = config.pipeline_model_parallel_size if len(chunks) > 1 else 1
    iterators = [_repeat(tokens, num_microbatches) for _ in chunks]
    with torch.no_grad():
        outputs = get_forward_backward_func()(
            forward_step_func=_forward_step,
            data_iterator=iterators if len(chunks) > 1 else iterators[0],
            model=chunks if len(chunks) > 1 else chunks[0],
            num_microbatches=num_microbatches,
            seq_length=tokens.shape[1],
            micro_batch_size=1,
            forward_only=True,
            collect_non_loss_data=True,
        )
    return outputs[0][:, :chunks[0].architecture.vocab_size] if outputs else None


def _repeat(tokens: Tensor, times: int) -> Iterator[Tensor]:
    return iter([tokens] * times)


def _multiple_of(config: TransformerConfig) -> int:
    """Context parallelism cuts a sequence into 2 · cp pieces, sequence parallelism these over the tp ranks."""
    cp = config.context_parallel_size
    return config.tensor_model_parallel_size * (2 * cp if cp > 1 else 1)


def _forward_step(batches: Iterator[Tensor], model: GPTModel) -> tuple[Tensor, Any]:
    tokens = next(batches)
    here = positions_on_this_rank(tokens.shape[1], parallel_state.get_context_parallel_group(), tokens.device)
    return model(tokens[:, here], None, None), _gather_logits


def _gather_logits(logits: Tensor, non_loss_data: bool) -> Tensor:
    """`[1, c, v / tp]` of each rank -> `[s, v]` on every rank of the stage."""
    part = gather_from_tensor_model_parallel_region(logits.contiguous())[0]
    group = parallel_state.get_context_parallel_group()
    return gather_sequence(part, group) if group.size() > 1 else part


def _first_rank_of_last_stage() -> int:
    """Global rank with tp rank 0 and dp rank 0 in the last pipeline stage, the same on all ranks."""
    mine = (parallel_state.is_pipeline_last_stage() and parallel_state.get_tensor_model_parallel_rank() == 0
            and parallel_state.get_data_parallel_rank() == 0)
    rank = torch.tensor([dist.get_rank() if mine else -1], device=compute_device())
    dist.all_reduce(rank, op=dist.ReduceOp.MAX)
    return int(rank.item())


def _describe(chunks: list[GPTModel]) -> str:
    config = chunks[0].config
    virtual = f" vpp={len(chunks)}" if len(chunks) > 1 else ""
    context = f" cp={config.context_parallel_size}" if config.context_parallel_size > 1 else ""
    layers = " transformer_engine" if config.transformer_impl == "transformer_engine" else ""
    return (f"tp={config.tensor_model_parallel_size} pp={config.pipeline_model_parallel_size}{virtual}{context}"
            f"{layers}")
