"""Programs that run as one process or as several started by torchrun."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel

from megatron_ext.artifacts import Artifact, produce
from megatron_ext.config import ParallelConfig
from megatron_ext.model.parallel import initialize_parallel, shut_down_parallel


@contextmanager
def process_groups(parallel: ParallelConfig) -> Iterator[None]:
    """The groups of a layout: over the processes that torchrun started, or this process alone where it did not."""
    if "WORLD_SIZE" not in os.environ and parallel == ParallelConfig():
        with single_process():
            yield
        return
    initialize_parallel(parallel)
    try:
        yield
    finally:
        shut_down_parallel()


@contextmanager
def single_process() -> Iterator[None]:
    """Process groups of this process alone (tp = pp = dp = 1), without a network port; none if there are some."""
    if dist.is_initialized():
        yield
        return
    backend = "nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    tensor_parallel.model_parallel_cuda_manual_seed(0)
    try:
        yield
    finally:
        parallel_state.destroy_model_parallel()
        dist.destroy_process_group()


def produce_together(
    output: Path,
    *,
    kind: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Path],
    make: Callable[[Path], Mapping[str, Any]],
    **how: Any,
) -> Artifact | None:
    """`produce` for an artifact that all ranks make: `make` runs on each of them, with the same folder.

    Rank 0 decides whether there is anything to do, and publishes; it returns the artifact, the others None.
    """
    if dist.get_rank() != 0:
        folder = _from_main_rank(None)
        if folder is not None:
            make(folder)
        return None

    told = False

    def make_with_the_others(folder: Path) -> Mapping[str, Any]:
        nonlocal told
        told = True
        _from_main_rank(folder)
        return make(folder)

    try:
        return produce(output, kind=kind, settings=settings, inputs=inputs, make=make_with_the_others, **how)
    finally:
        if not told:
            _from_main_rank(None)


def _from_main_rank(folder: Path | None) -> Path | None:
    message = [folder]
    dist.broadcast_object_list(message, src=0)
    return message[0]
