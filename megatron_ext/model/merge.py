"""The weighted mean of checkpoints as a checkpoint: in one process, on a CPU, block by block.

Sums are in float64; with tied embeddings there is one tensor for both. Optimizer states are left out: a mean of moments
belongs to no run.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_ext.artifacts import Artifact
from megatron_ext.errors import UserError
from megatron_ext.model.checkpoint_reader import CheckpointReader
from megatron_ext.model.checkpoint_writer import LayerTensor, remove_checkpoint, write_checkpoint
from megatron_ext.model.checkpoints import CONTENT_METADATA
from megatron_ext.model.gpt import padded_vocab_size
from megatron_ext.model.held_checkpoint import held, named_checkpoint
from megatron_ext.model.hf_config import Architecture, read_architecture
from megatron_ext.model.hf_export import HF_METADATA, check_tensors
from megatron_ext.model.hf_files import copy_hf_metadata
from megatron_ext.model.likeness import unlike
from megatron_ext.model.mappings import Vocab, in_model_order, megatron_shapes, weight_table
from megatron_ext.model.settings import MergeSettings
from megatron_ext.stage import make_artifact

_BLOCK_ELEMENTS = 2**20
_CACHED_ELEMENTS = 2**15
_NUM_THREADS = 4


def merge_checkpoints(settings: MergeSettings, output: Path) -> Artifact:
    """Make the checkpoint artifact `output`; its manifest names every parent. Runs may delete the parents meanwhile.

    Raises UserError when a parent is no checkpoint, or not of the first one's model.
    """
    parents = {f"parent {number}": named_checkpoint(path) for number, path in enumerate(settings.checkpoints)}

    def make(folder: Path) -> dict[str, Any]:
        history = _history(list(parents.values()))
        with ExitStack() as stack:
            copies = [stack.enter_context(held(path, folder, f".parent-{number}"))
                      for number, path in enumerate(parents.values())]
            return history | write_merged(copies, folder, settings.weights, settings.dtype)

    return make_artifact(output, kind="checkpoint", settings=settings, inputs=parents, make=make)


def write_merged(parents: Sequence[Path], folder: Path, weights: Sequence[float] | None = None,
                 dtype: str = "keep") -> dict[str, Any]:
    """Write the mean of checkpoints, with the first one's config and tokenizer files; returns what it holds.

    Memory: two tensors of the result, and a few blocks of the parents. Equal parents give equal bytes, whatever layouts
    wrote them.
    """
    for parent in parents[1:]:
        for told in unlike(parents[0] / HF_METADATA, parent / HF_METADATA):
            raise UserError(f"{parent} has {told} than {parents[0]}: only checkpoints of one model can be merged")
    architecture = read_architecture(parents[0] / HF_METADATA)
    readers = [CheckpointReader(parent) for parent in parents]
    for reader in readers:
        check_tensors(reader, weight_table(architecture), architecture)
    stored = _dtype_of(readers, dtype)
    tensors = list(_merged_tensors(readers, [1.0] * len(parents) if weights is None else list(weights), architecture,
                                   stored))
    remove_checkpoint(folder)  # what an interrupted merge has left
    write_checkpoint(folder, tensors, architecture.num_layers, CONTENT_METADATA)
    copy_hf_metadata(parents[0] / HF_METADATA, folder / HF_METADATA)
    return {"family": architecture.family, "dtype": str(stored).removeprefix("torch."),
            "num_tensors": len(tensors), "num_parameters": architecture.num_parameters}


def _history(parents: Sequence[Path]) -> dict[str, Any]:
    """How far the parents had come, and what was changed on their ways."""
    counts = [Artifact.of_manifest(parent).counts for parent in parents]
    changes = [change for one in counts for change in one.get("changes", [])]
    distinct = [change for place, change in enumerate(changes) if change not in changes[:place]]
    return {"iteration": max(one.get("iteration", 0) for one in counts),
            "iterations": [one.get("iteration", 0) for one in counts], "changes": distinct}


def _dtype_of(readers: Sequence[CheckpointReader], wanted: str) -> torch.dtype:
    if wanted != "keep":
        return getattr(torch, wanted)
    found = {reader.dtype(name): reader for reader in readers for name in reader.names()}
    if len(found) > 1:
        told = ", ".join(f"{reader.folder} {str(dtype).removeprefix('torch.')}" for dtype, reader in found.items())
        raise UserError(f"the checkpoints' weights are of several types ({told}); choose one with dtype=float32 or "
                        "dtype=bfloat16")
    return next(iter(found))


def _merged_tensors(readers: Sequence[CheckpointReader], weights: list[float], architecture: Architecture,
                    dtype: torch.dtype) -> Iterator[LayerTensor]:
    """What the checkpoint will hold, in the order of the model; nothing is read yet."""
    table, shapes = weight_table(architecture), megatron_shapes(architecture)
    for name, layer in in_model_order(table, architecture.num_layers):
        num_rows, *columns = shapes[name]
        filled = padded_vocab_size(num_rows, 1) if isinstance(table[name], Vocab) else num_rows
        yield LayerTensor(name, layer, (filled, *columns), dtype,
                          partial(_mean, readers, weights, name, layer, num_rows, (filled, *columns), dtype))


def _mean(readers: Sequence[CheckpointReader], weights: Sequence[float], name: str, layer: int | None, num_rows: int,
          shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """The mean of a tensor's first rows; those that fill the vocabulary up to `shape` are zero."""
    # Pages of its own go back to the system at once; the allocator would keep many of them.
    pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
    merged = torch.frombuffer(pages, dtype=dtype).view(shape)
    step = max(1, _BLOCK_ELEMENTS // math.prod(shape[1:]))
    blocks = [range(first, min(first + step, num_rows)) for first in range(0, num_rows, step)]

    def fill(rows: range) -> None:
        parts = [reader.read(name, layer, rows).reshape(-1) for reader in readers]
        _average(parts, weights, merged[rows.start:rows.stop].view(-1))

    with ThreadPoolExecutor(_NUM_THREADS) as pool:  # some compute while others wait for the disk
        list(pool.map(fill, blocks))
    return merged


def _average(parts: Sequence[Tensor], weights: Sequence[float], result: Tensor) -> None:
    """The weighted mean of tensors of one axis, in pieces that stay in a core's cache.

    The sum begins with the first one, not with 0, which would turn -0 into 0.
    """
    size = min(len(result), _CACHED_ELEMENTS)
    sums, others = torch.empty(2, size, dtype=torch.float64)
    for first in range(0, len(result), size):
        piece = slice(first, first + size)
        kept = result[piece]
        total, other = sums[:len(kept)], others[:len(kept)]
        total.copy_(parts[0][piece]).mul_(weights[0])
        for part, weight in zip(parts[1:], weights[1:], strict=True):
            total.add_(other.copy_(part[piece]), alpha=weight)
        kept.copy_(total.div_(sum(weights)))
