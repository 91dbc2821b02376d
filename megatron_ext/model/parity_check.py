"""The parity stage: a verdict as an artifact, so that what follows can rely on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch.distributed as dist

from megatron_ext.artifacts import Artifact, write_json
from megatron_ext.config import ModelConfig
from megatron_ext.model.checkpoints import load_model
from megatron_ext.model.distributed import produce_together
from megatron_ext.model.gpt import build_model
from megatron_ext.model.hf_weights import load_hf_weights
from megatron_ext.model.megatron_parity import check_chunks
from megatron_ext.model.parity import Parity, check_hf_folders
from megatron_ext.model.settings import ParitySettings
from megatron_ext.stage import make_artifact

VERDICT = "parity.json"


def check_parity(settings: ParitySettings, output: Path) -> Artifact | None:
    """Make the verdict `output`; all ranks of the layout call it. Rank 0 returns the artifact.

    Raises ParityError, and makes nothing, when the logits differ by more than rounding explains.
    """
    places = {"model": settings.model, "checkpoint": settings.checkpoint, "other": settings.other}

    def make(folder: Path) -> dict[str, Any]:
        verdict = _compare(settings)
        if dist.get_rank() == 0:
            imported = settings.checkpoint is None and settings.other is None
            print(verdict.line("parity after import" if imported else "parity"), flush=True)
        verdict.require()
        if dist.get_rank() == 0:
            write_json(folder / VERDICT, verdict.as_dict())
        return verdict.as_dict()

    return make_artifact(
        output, kind="parity", settings=settings, make=make, produce=produce_together,
        inputs={name: place for name, place in places.items() if place is not None})


def _compare(settings: ParitySettings) -> Parity:
    if settings.other is not None:
        return check_hf_folders(settings.model, settings.other, settings.positions, settings.dtype)
    model = ModelConfig(hf_folder=settings.model, dtype=settings.dtype,
                        layer_implementation=settings.layer_implementation)
    chunks = build_model(model, settings.parallel)
    if settings.checkpoint is None:
        load_hf_weights(chunks, settings.model)
    else:
        load_model(chunks, settings.checkpoint)
    return check_chunks(chunks, settings.model, settings.dtype, settings.positions)
