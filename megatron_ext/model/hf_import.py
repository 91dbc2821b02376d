"""From a Hugging Face folder to a Megatron checkpoint: each rank reads its slices, and parity is proven before."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from megatron.core.models.gpt import GPTModel
from pydantic import Field

from megatron_ext.artifacts import Artifact
from megatron_ext.config import ModelConfig, ParallelConfig
from megatron_ext.model.checkpoints import save_model
from megatron_ext.model.distributed import produce_together
from megatron_ext.model.gpt import build_model
from megatron_ext.model.hf_config import read_architecture
from megatron_ext.model.hf_export import HF_METADATA
from megatron_ext.model.hf_files import copy_hf_metadata
from megatron_ext.model.hf_weights import load_hf_weights
from megatron_ext.model.megatron_parity import check_chunks
from megatron_ext.settings import Settings


class ImportSettings(Settings):
    """What is imported."""

    model: Path
    """Hugging Face folder: config.json, safetensors, tokenizer."""
    parallel: ParallelConfig = ParallelConfig()
    """Layout of the processes that import; the checkpoint can be loaded under any other."""
    dtype: Literal["keep", "float32", "bfloat16"] = "keep"
    """Type of the checkpoint's weights; `keep`: that of the folder."""
    parity: bool = True
    """Prove that the imported model gives the logits of transformers before it is saved."""
    parity_positions: int = Field(default=512, gt=1)
    """Token positions over which the logits are compared."""


def import_hf(settings: ImportSettings, output: Path) -> Artifact | None:
    """Make the checkpoint artifact `output`; all ranks of the layout call it. Rank 0 returns the artifact.

    Raises UserError when the model is not supported, damaged or cannot be split; ParityError when the logits differ.
    """
    return produce_together(
        output, kind="checkpoint", settings=settings.model_dump(mode="json", exclude={"model"}),
        inputs={"model": settings.model}, make=lambda folder: _import(settings, folder))


def _import(settings: ImportSettings, folder: Path) -> dict[str, Any]:
    stored = read_architecture(settings.model).dtype if settings.dtype == "keep" else settings.dtype
    # Parity is proven in float32, where the limits are tight; every type that weights are stored in fits into it.
    chunks = build_model(ModelConfig(hf_folder=settings.model, dtype="float32"), settings.parallel)
    load_hf_weights(chunks, settings.model)
    counts: dict[str, Any] = {"iteration": 0, "dtype": stored}
    if settings.parity:
        verdict = check_chunks(chunks, settings.model, "float32", settings.parity_positions)
        if dist.get_rank() == 0:
            print(verdict.line("parity after import"), flush=True)
        counts["parity"] = verdict.require().as_dict()
    for chunk in chunks:
        chunk.to(getattr(torch, stored))
    _save(chunks, settings.model, folder)
    return counts


def _save(chunks: list[GPTModel], hf_folder: Path, folder: Path) -> None:
    """Save beside what an interrupted save may have left, which megatron-core would mix with the new files."""
    aside = folder / "saving"
    if dist.get_rank() == 0:
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
    dist.barrier()
    save_model(chunks, aside)
    dist.barrier()
    if dist.get_rank() == 0:
        for file in aside.iterdir():
            file.replace(folder / file.name)
        aside.rmdir()
        copy_hf_metadata(hf_folder, folder / HF_METADATA)
