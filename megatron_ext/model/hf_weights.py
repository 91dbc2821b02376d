"""Hugging Face weights into this rank's GPTModel chunks: each rank reads only its own slices."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from megatron.core import parallel_state
from megatron.core.models.gpt import GPTModel

from megatron_ext.errors import UserError
from megatron_ext.model.hf_config import Architecture
from megatron_ext.model.hf_files import HFTensors, copy_hf_metadata
from megatron_ext.model.mappings import IGNORED_HF_TENSORS, Row, Shard, Vocab, megatron_shapes, weight_table

__all__ = ["checkpoint_name", "copy_hf_metadata", "load_hf_weights"]

_HEAD, _EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
_LOCAL_NAMES = {
    ".input_layernorm.weight": ".self_attention.linear_qkv.layer_norm_weight",
    ".pre_mlp_layernorm.weight": ".mlp.linear_fc1.layer_norm_weight",
}
"""Parameters of the local layers -> their names in checkpoints, where Transformer Engine fuses a norm and a linear."""


def load_hf_weights(chunks: list[GPTModel], hf_folder: Path) -> None:
    """Fill every parameter of this rank's model chunks from the safetensors files of a Hugging Face folder.

    Raises UserError when a tensor is missing, unknown, or of another shape than the model needs.
    """
    architecture: Architecture = chunks[0].architecture
    tensors = HFTensors(hf_folder)
    check_names(tensors, architecture)
    tp = parallel_state.get_tensor_model_parallel_world_size()
    shard = Shard(parallel_state.get_tensor_model_parallel_rank(), tp)
    with torch.no_grad():
        for name, row, parameter in _rows_of(chunks, architecture):
            hf_names = [_with_layer(hf_name, name) for hf_name in row.hf_names]
            whole_shape = _whole_shape(row, parameter.shape, tp)
            check_shapes(tensors, hf_names, name, row, whole_shape, architecture)
            parts = [tensors.tensor(hf_name) for hf_name in hf_names]
            parameter.copy_(row.to_megatron(parts, shard, parameter.shape[0], architecture))


def checkpoint_name(parameter_name: str, first_layer: int = 0) -> str:
    """A parameter's name in checkpoints, with the number of its layer in the whole model.

    Args:
        first_layer: number of the chunk's first layer.
    """
    for local, stored in _LOCAL_NAMES.items():
        parameter_name = parameter_name.replace(local, stored)
    prefix = "decoder.layers."
    if not parameter_name.startswith(prefix):
        return parameter_name
    layer, rest = parameter_name.removeprefix(prefix).split(".", 1)
    return f"{prefix}{int(layer) + first_layer}.{rest}"


def pattern_of(name: str) -> str:
    """`decoder.layers.7.x` -> `decoder.layers.*.x`, the form in which the tables name it."""
    return ".".join("*" if part.isdigit() else part for part in name.split("."))


def check_names(tensors: HFTensors, architecture: Architecture) -> None:
    """Raise UserError when a tensor of the table is missing, or a tensor is in no table."""
    expected = {hf_name.replace("*", str(layer)): (shape, name, row)
                for name, row in weight_table(architecture).items()
                for hf_name, shape in zip(row.hf_names, _hf_shapes(name, row, architecture), strict=True)
                for layer in (range(architecture.num_layers) if "*" in hf_name else [0])}
    missing = sorted(expected.keys() - tensors.names())
    if missing:
        shape, name, row = expected[missing[0]]
        raise UserError(f"{tensors.folder}: {missing[0]} {shape} is missing ({len(missing)} such tensors); {name} = "
                        f"{row} needs it. config.json and the weights are not of one model, or a file is incomplete")
    if architecture.tied_embeddings:
        _check_tied(tensors)
    ignored = [*IGNORED_HF_TENSORS, *([_HEAD] if architecture.tied_embeddings else [])]
    unknown = sorted(name for name in tensors.names() - expected.keys()
                     if not any(fnmatchcase(name, pattern) for pattern in ignored))
    if unknown:
        raise UserError(f"{tensors.folder}: {unknown[0]} {tensors.shape(unknown[0])} ({len(unknown)} such tensors) is "
                        f"in no row of the {architecture.family} table in megatron_ext/model/mappings.py: the model "
                        "computes something that is not supported")


def _check_tied(tensors: HFTensors) -> None:
    """Raise UserError when a model that is said to have one embedding has stored two that differ."""
    if _HEAD in tensors.names() and _EMBEDDING in tensors.names() and not torch.equal(
            tensors.tensor(_HEAD), tensors.tensor(_EMBEDDING)):
        raise UserError(f"{tensors.folder}: config.json says tie_word_embeddings: true, but {_HEAD} is another tensor "
                        f"than {_EMBEDDING}: which of them is the output layer? Set it to false if {_HEAD} is, or "
                        f"remove {_HEAD}")


def _hf_shapes(name: str, row: Row, architecture: Architecture) -> list[tuple[int, ...]]:
    """Shapes of the Hugging Face tensors of a row."""
    whole = megatron_shapes(architecture)[name]
    return [(num_rows, *whole[1:]) for num_rows in row.hf_num_rows(whole[0], architecture)]


def _rows_of(chunks: list[GPTModel], architecture: Architecture) -> Iterator[tuple[str, Row, torch.nn.Parameter]]:
    """(checkpoint name, row, parameter) of every parameter of this rank."""
    table = weight_table(architecture)
    if architecture.tied_embeddings:
        # The last pipeline stage holds a copy of the first one's embedding as its output layer.
        table["output_layer.weight"] = Vocab(table["embedding.word_embeddings.weight"].hf_names[0])
    for chunk in chunks:
        first_layer = chunk.decoder.layers[0].layer_number - 1
        for parameter_name, parameter in chunk.named_parameters():
            name = checkpoint_name(parameter_name, first_layer)
            assert pattern_of(name) in table, f"{name} has no row"
            yield name, table[pattern_of(name)], parameter


def _with_layer(hf_name: str, name: str) -> str:
    layer = next((part for part in name.split(".") if part.isdigit()), "")
    return hf_name.replace("*", layer)


def _whole_shape(row: Row, local_shape: torch.Size, tp: int) -> tuple[int, ...]:
    return tuple(size * tp if axis == row.sharded_axis else size for axis, size in enumerate(local_shape))


def check_shapes(tensors: HFTensors, hf_names: list[str], name: str, row: Row, whole_shape: tuple[int, ...],
                 architecture: Architecture) -> None:
    """Raise UserError when the Hugging Face tensors of a Megatron tensor do not have the shapes that it needs."""
    num_rows = row.hf_num_rows(whole_shape[0], architecture)
    for hf_name, rows in zip(hf_names, num_rows, strict=True):
        found, expected = tensors.shape(hf_name), (rows, *whole_shape[1:])
        if found != expected:
            raise UserError(f"{tensors.folder}: {hf_name} has shape {found}; {name} = {row} needs {expected}: "
                            "config.json and the weights are not of one model")
