"""From a Hugging Face folder to a Megatron checkpoint: one tensor at a time, then proof that it is the same model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_ext.artifacts import Artifact
from megatron_ext.config import ModelConfig
from megatron_ext.model.checkpoint_writer import LayerTensor, remove_checkpoint, write_checkpoint
from megatron_ext.model.checkpoints import CONTENT_METADATA, load_model
from megatron_ext.model.distributed import produce_together
from megatron_ext.model.gpt import build_model, check_layout, padded_vocab_size
from megatron_ext.model.hf_config import Architecture, read_architecture
from megatron_ext.model.hf_export import HF_METADATA
from megatron_ext.model.hf_files import HFTensors, copy_hf_metadata
from megatron_ext.model.hf_weights import check_names, check_shapes
from megatron_ext.model.mappings import Row, Shard, Vocab, in_model_order, megatron_shapes, weight_table
from megatron_ext.model.megatron_parity import check_chunks
from megatron_ext.model.settings import ImportSettings
from megatron_ext.stage import make_artifact


def import_hf(settings: ImportSettings, output: Path) -> Artifact | None:
    """Make the checkpoint artifact `output`; all ranks of the layout call it. Rank 0 returns the artifact.

    Raises UserError when the model is not supported, damaged or cannot be split; ParityError when the logits differ.
    """
    check_layout(read_architecture(settings.model), settings.parallel)
    return make_artifact(output, kind="checkpoint", settings=settings, inputs={"model": settings.model},
                         make=lambda folder: _import(settings, folder), produce=produce_together)


def write_megatron_checkpoint(hf_folder: Path, folder: Path, dtype: str = "keep") -> dict[str, Any]:
    """Write a checkpoint of the folder's weights, with its config and tokenizer files; returns what it holds.

    Memory: two Megatron tensors of one layer and the Hugging Face tensors that one of them is made of.

    Raises UserError when a tensor is missing, unknown, or of another shape than config.json asks for.
    """
    architecture = read_architecture(hf_folder)
    tensors = HFTensors(hf_folder, whole=True)
    check_names(tensors, architecture)
    stored = architecture.dtype if dtype == "keep" else dtype
    write_checkpoint(folder, list(_layer_tensors(tensors, architecture, getattr(torch, stored))),
                     architecture.num_layers, CONTENT_METADATA)
    copy_hf_metadata(hf_folder, folder / HF_METADATA)
    return {"iteration": 0, "family": architecture.family, "dtype": stored}


def _import(settings: ImportSettings, folder: Path) -> dict[str, Any]:
    counts: dict[str, Any] = {}
    if dist.get_rank() == 0:
        remove_checkpoint(folder)  # what an interrupted import has left
        shutil.rmtree(folder / HF_METADATA, ignore_errors=True)
        counts = write_megatron_checkpoint(settings.model, folder, settings.dtype)
    dist.barrier()
    if settings.parity:
        # In float32, where the limits are tight; every type that weights are stored in fits into it.
        chunks = build_model(ModelConfig(hf_folder=settings.model, dtype="float32"), settings.parallel)
        load_model(chunks, folder)
        rounded_to = None if settings.dtype == "keep" else settings.dtype
        verdict = check_chunks(chunks, settings.model, "float32", settings.parity_positions, rounded_to)
        if dist.get_rank() == 0:
            print(verdict.line("parity after import"), flush=True)
        counts["parity"] = verdict.require().as_dict()
    return counts


def _layer_tensors(tensors: HFTensors, architecture: Architecture, dtype: torch.dtype) -> Iterator[LayerTensor]:
    """What the checkpoint will hold, in the order of the model; shapes are checked, nothing is read yet."""
    table, shapes = weight_table(architecture), megatron_shapes(architecture)
    for name, layer in in_model_order(table, architecture.num_layers):
        row, shape = table[name], shapes[name]
        if isinstance(row, Vocab):
            shape = (padded_vocab_size(architecture.vocab_size, 1), *shape[1:])
        hf_names = [hf_name.replace("*", str(layer)) for hf_name in row.hf_names]
        check_shapes(tensors, hf_names, name, row, shape, architecture)
        yield LayerTensor(name, layer, shape, dtype, partial(_read, tensors, hf_names, row, shape[0], architecture))


def _read(tensors: HFTensors, hf_names: list[str], row: Row, num_rows: int, architecture: Architecture) -> Tensor:
    return row.to_megatron([tensors.tensor(name) for name in hf_names], Shard(0, 1), num_rows, architecture)
