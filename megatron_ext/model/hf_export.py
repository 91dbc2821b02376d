"""From a Megatron checkpoint to a Hugging Face folder: in one process, on a CPU, one tensor at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_ext.artifacts import Artifact, write_json
from megatron_ext.errors import UserError
from megatron_ext.model.checkpoint_reader import CheckpointReader
from megatron_ext.model.held_checkpoint import (
    CheckpointGone,
    gone_if_deleted,
    held,
    named_checkpoint,
    new_checkpoints,
)
from megatron_ext.model.hf_config import Architecture, read_architecture
from megatron_ext.model.hf_files import Piece, copy_hf_metadata, write_hf_weights
from megatron_ext.model.mappings import Row, Table, Vocab, in_model_order, megatron_shapes, weight_table
from megatron_ext.model.settings import ExportSettings
from megatron_ext.stage import make_artifact

HF_METADATA = "hf"
"""Folder in a checkpoint with the config and tokenizer files of the model that training began from."""


def export_hf(settings: ExportSettings, output: Path) -> Artifact:
    """Make the Hugging Face folder `output`; it goes on after an interruption.

    A run that goes on may delete the checkpoint meanwhile; if it was given as `latest`, the next one takes its place.

    Raises UserError when the checkpoint is none or does not fit its config, ParityError when the logits differ.
    """
    while True:
        checkpoint = named_checkpoint(settings.checkpoint)
        try:
            return _export_one(settings, checkpoint, output)
        except CheckpointGone:
            if named_checkpoint(settings.checkpoint) == checkpoint:
                raise
            settings = settings.model_copy(update={"restart": True})  # what was made of a lost checkpoint is of no use


def export_run(settings: ExportSettings, output: Path) -> Iterator[Artifact]:
    """Make `output/iter_…` of each checkpoint of the run `settings.checkpoint`, until the run is finished.

    A checkpoint that the run deletes before its turn is passed over, with a line that says so. Raises as export_hf.
    """
    for checkpoint in new_checkpoints(settings.checkpoint, settings.poll_seconds):
        try:
            yield _export_one(settings, checkpoint, output / checkpoint.name)
        except CheckpointGone as gone:
            print(gone, flush=True)


def _export_one(settings: ExportSettings, checkpoint: Path, output: Path) -> Artifact:
    def make(folder: Path) -> dict[str, Any]:
        with held(checkpoint, folder) as source:
            counts = write_hf_folder(source, folder, settings.dtype, int(settings.max_file_gigabytes * 1e9))
            if settings.parity:
                from megatron_ext.model.megatron_parity import check_export

                verdict = check_export(source, folder, settings.parity_positions)
                print(verdict.line("parity after export"), flush=True)
                if not verdict.passed:
                    _forget_weights(folder)
                counts["parity"] = verdict.require().as_dict()
        return counts | ({"changes": changes} if changes else {})

    with gone_if_deleted(checkpoint):
        changes = Artifact.open(checkpoint, kind="checkpoint").counts.get("changes", [])
        return make_artifact(output, kind="hf_model", settings=settings, inputs={"checkpoint": checkpoint}, make=make)


def _forget_weights(folder: Path) -> None:
    """Wrong weights must not be gone on with when the cause is mended."""
    for file in folder.glob("*.safetensors"):
        file.unlink()


def write_hf_folder(checkpoint: Path, folder: Path, dtype: str = "keep",
                    max_file_bytes: int = 5 * 10**9) -> dict[str, Any]:
    """Write weights, config and tokenizer of a checkpoint as a Hugging Face folder; returns what it holds.

    Memory: two Megatron tensors of one layer, and their Hugging Face tensors where those are copies.
    """
    source = checkpoint / HF_METADATA
    architecture = read_architecture(source)
    pieces = _pieces(CheckpointReader(checkpoint), architecture, dtype)
    copy_hf_metadata(source, folder)
    stored = str(pieces[0].dtype).removeprefix("torch.")
    _say_dtype(folder / "config.json", stored, architecture.dtype)
    write_hf_weights(folder, pieces, max_file_bytes)
    return {"family": architecture.family, "vocab_size": architecture.vocab_size, "dtype": stored,
            "num_tensors": sum(len(piece.names) for piece in pieces),
            "num_parameters": sum(torch.Size(shape).numel() for piece in pieces for shape in piece.shapes)}


def _pieces(reader: CheckpointReader, architecture: Architecture, dtype: str) -> list[Piece]:
    """Every tensor of the folder, in the order of the model."""
    table = weight_table(architecture)
    check_tensors(reader, table, architecture)
    return [_piece(reader, name, table[name], layer, architecture, dtype)
            for name, layer in in_model_order(table, architecture.num_layers)]


def _piece(reader: CheckpointReader, name: str, row: Row, layer: int | None, architecture: Architecture,
           dtype: str) -> Piece:
    shape = reader.shape(name)
    return Piece(
        names=[hf_name.replace("*", str(layer)) for hf_name in row.hf_names],
        shapes=[(num_rows, *shape[1:]) for num_rows in row.hf_num_rows(shape[0], architecture)],
        dtype=reader.dtype(name) if dtype == "keep" else getattr(torch, dtype),
        make=partial(_read_as_hf, reader, name, row, layer, architecture),
    )


def _read_as_hf(reader: CheckpointReader, name: str, row: Row, layer: int | None,
                architecture: Architecture) -> Sequence[Tensor]:
    return row.to_hf(reader.read(name, layer), architecture)


def check_tensors(reader: CheckpointReader, table: Table, architecture: Architecture) -> None:
    """Raise UserError when the checkpoint's tensors are not those of its config."""
    missing, unknown = sorted(table.keys() - reader.names()), sorted(reader.names() - table.keys())
    if missing:
        shape = megatron_shapes(architecture)[missing[0]]
        raise UserError(f"{reader.folder}: {missing[0]} {shape} is missing, from which {table[missing[0]]} would be "
                        "made")
    if unknown:
        raise UserError(f"{reader.folder}: {unknown[0]} {reader.shape(unknown[0])} is in no row of the "
                        f"{architecture.family} table in megatron_ext/model/mappings.py")
    for name, expected in megatron_shapes(architecture).items():
        found, layers = reader.shape(name), reader.num_layers(name)
        if isinstance(table[name], Vocab):  # filled up to what the layout needed
            expected = (max(found[0], expected[0]), *expected[1:])
        if found != expected or layers not in (None, architecture.num_layers):
            raise UserError(f"{reader.folder}: {name} = {table[name]} has shape {found} in {layers or 1} layers; "
                            f"{HF_METADATA}/config.json asks for {expected} in {architecture.num_layers}")


def _say_dtype(config_file: Path, dtype: str, understood: str) -> None:
    """Let config.json say how the weights are stored, in each spelling that it has; all else stays.

    Args:
        understood: what it is taken to say now.
    """
    config = json.loads(config_file.read_text(encoding="utf-8"))
    spellings = [key for key in ("dtype", "torch_dtype") if config.get(key) is not None]
    if {understood, *(config[key] for key in spellings)} != {dtype}:
        write_json(config_file, {**config, **dict.fromkeys(spellings or ["dtype"], dtype)})
