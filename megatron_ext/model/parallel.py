"""Process groups of a run, and who this process is in them."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel

from megatron_ext.config import ParallelConfig
from megatron_ext.errors import UserError

T = TypeVar("T")


def initialize_parallel(config: ParallelConfig, seed: int = 0) -> None:
    """Join the processes that torchrun started into tensor, pipeline, context and data parallel groups.

    Called again with another layout, it deals the same processes anew.

    Raises UserError when the number of processes is not a multiple of tp x pp x cp.
    """
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    tp, pp = config.tensor_model_parallel_size, config.pipeline_model_parallel_size
    cp = config.context_parallel_size
    if world_size % (tp * pp * cp):
        raise UserError(f"{world_size} processes cannot be laid out as tensor_model_parallel_size {tp} x "
                        f"pipeline_model_parallel_size {pp} x context_parallel_size {cp}: start a multiple of "
                        f"{tp * pp * cp}")
    if not dist.is_initialized():
        _join_processes()
    parallel_state.destroy_model_parallel()
    parallel_state.initialize_model_parallel(tp, pp, config.virtual_pipeline_model_parallel_size,
                                             context_parallel_size=cp)
    tensor_parallel.model_parallel_cuda_manual_seed(seed)


def _join_processes() -> None:
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    # One process without torchrun needs no rendezvous, and no port that another could hold.
    alone = {} if "WORLD_SIZE" in os.environ else {"store": dist.HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group(backend, timeout=timedelta(minutes=30), **alone)


def shut_down_parallel() -> None:
    """Leave the groups; without it the next run in this process could not start."""
    if dist.is_initialized():
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def device() -> torch.device:
    """The device of this process."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")


def pinned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in memory that a GPU reads by itself; a copy from any other keeps the host waiting."""
    return tensor.pin_memory() if torch.cuda.is_available() else tensor


def to_device(tensor: torch.Tensor) -> torch.Tensor:
    """Begin to copy a tensor of the host; if it is pinned nobody waits."""
    return tensor.to(device(), non_blocking=True)


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Begin to copy a tensor of the device; the copy is whole after the next synchronisation, not before."""
    return tensor.to("cpu", non_blocking=True)


def is_main_rank() -> bool:
    """Whether this process writes the run's files and console."""
    return dist.get_rank() == 0


def on_main_rank(function: Callable[[], T]) -> T:
    """Call a function on the main rank and give its result to all; a user's mistake is raised on every rank."""
    result: list[Any] = [None, None]
    if is_main_rank():
        try:
            result[0] = function()
        except UserError as error:
            result[1] = str(error)
    dist.broadcast_object_list(result, src=0)
    if result[1] is not None:
        raise UserError(result[1])
    return result[0]


def on_first_rank_of_each_node(action: Callable[[], object]) -> None:
    """Run `action` once on each node; a user's mistake, which may be one node's alone, is raised on every rank."""
    problem = None
    if os.environ.get("LOCAL_RANK", "0") == "0":
        try:
            action()
        except UserError as error:
            problem = f"{error} (found on {platform.node()})"
    problems: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(problems, problem)
    for found in filter(None, problems):
        raise UserError(found)


def sum_over_data_parallel(values: torch.Tensor) -> torch.Tensor:
    """Sum over the data- and context-parallel ranks, then give the last pipeline stage's result to every stage.

    Losses exist on the last stage alone; ranks of other stages pass zeros of the same shape.
    """
    values = values.contiguous()  # gloo gives wrong sums of non-contiguous tensors without a word
    dist.all_reduce(values, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        dist.broadcast(values, src=parallel_state.get_pipeline_model_parallel_last_rank(),
                       group=parallel_state.get_pipeline_model_parallel_group())
    return values


def any_rank(flag: bool) -> torch.Tensor:
    """Whether the flag is set on any rank, the same answer on all, so that all do the same: int64 `[]`, not 0 if so."""
    decision = torch.full((), int(flag), dtype=torch.int64, device=device())
    dist.all_reduce(decision, op=dist.ReduceOp.MAX)
    return decision
