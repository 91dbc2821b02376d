"""Held-out loss as a stage of its own: of a base model or any checkpoint, on any source, whenever it is wanted."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import parallel_state

from megatron_ext.artifacts import Artifact, write_json, write_text
from megatron_ext.config import RunConfig
from megatron_ext.errors import UserError
from megatron_ext.model.checkpoints import load_model
from megatron_ext.model.distributed import produce_together
from megatron_ext.model.gpt import build_model
from megatron_ext.model.hf_weights import load_hf_weights
from megatron_ext.stage import make_artifact
from megatron_ext.training.settings import HeldOutSettings
from megatron_ext.training.validation import document_losses, source_losses

LOSSES, DOCUMENTS = "losses.json", "documents.jsonl"


@dataclass(frozen=True)
class LoadedModel:
    """A model to be measured, and where this rank stands in the layout."""

    config: RunConfig
    model: list[torch.nn.Module]
    dp_rank: int
    dp_size: int

    def gather_weights(self) -> None:
        """They are whole."""


def measure_held_out(settings: HeldOutSettings, output: Path) -> Artifact | None:
    """Make the artifact `output` (kind "held_out"). All ranks call it; rank 0 returns the artifact.

    `documents.jsonl` has a line a held-out document: source, document_id, cluster (id of the document that it is, was
    rewritten from or is a copy of), nats and tokens of its text, and its UTF-8 bytes. `losses.json` holds the sums by
    source: {source: {nats_per_token, bits_per_byte, num_tokens}}; a source of which nothing is held out is left out.

    Raises UserError when the model or a source is missing.
    """
    inputs = {"model": settings.model} if settings.model else {"checkpoint": settings.checkpoint}
    inputs |= {f"source {name}": path for name, path in settings.sources.items()}

    def make(folder: Path) -> dict[str, Any]:
        documents = document_losses(_load(settings), settings.stride)
        losses = source_losses(documents)
        if not losses:
            raise UserError(f"no validation split of {', '.join(settings.sources)} has a token to predict; tokenize "
                            "with a valid_fraction above 0")
        if dist.get_rank() == 0:
            write_text(folder / DOCUMENTS, "".join(f"{json.dumps(asdict(one), ensure_ascii=False)}\n"
                                                   for one in documents))
            write_json(folder / LOSSES, losses)
        return {"sources": losses, "documents": len(documents)}

    return make_artifact(output, kind="held_out", settings=settings, inputs=inputs, make=make,
                         produce=produce_together)


def _load(settings: HeldOutSettings) -> LoadedModel:
    config = settings.as_run()
    chunks = build_model(config.model, config.parallel)
    if settings.checkpoint is not None:
        load_model(chunks, settings.checkpoint)
    else:
        load_hf_weights(chunks, config.model.hf_folder)
    return LoadedModel(config, chunks, parallel_state.get_data_parallel_rank(),
                       parallel_state.get_data_parallel_world_size())
