"""What `--dry-run` of importing, exporting, merging and proving parity tells of the model, from its config.json."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from megatron_ext.artifacts import Artifact
from megatron_ext.config import ParallelConfig
from megatron_ext.errors import UserError
from megatron_ext.model.held_checkpoint import named_checkpoint
from megatron_ext.model.hf_config import check_layout, read_architecture
from megatron_ext.model.likeness import unlike
from megatron_ext.model.settings import ExportSettings, ImportSettings, MergeSettings, ParitySettings

_HF_METADATA = "hf"


def describe_import(settings: ImportSettings) -> Iterator[str]:
    """The model, and the layout that it is proven under. Raises UserError when it is not supported or does not fit."""
    yield from _describe(settings.model, settings.parallel)


def describe_parity(settings: ParitySettings) -> Iterator[str]:
    """The same of a parity check."""
    yield from _describe(settings.model, settings.parallel)


def describe_export(settings: ExportSettings) -> Iterator[str]:
    """The model in the checkpoint. Raises UserError for a folder that is no checkpoint."""
    place = settings.checkpoint
    if settings.follow:
        yield f"every checkpoint of {place} as it appears"
        return
    if place.is_file():  # `latest`
        place = place.parent / place.read_text(encoding="utf-8").strip()
    if not (place / _HF_METADATA / "config.json").exists():
        raise UserError(f"checkpoint = {settings.checkpoint}: no checkpoint is there ({_HF_METADATA}/config.json is "
                        "missing); name <run>/checkpoints/iter_… or the file <run>/checkpoints/latest")
    yield from _describe(place / _HF_METADATA, ParallelConfig())


def describe_merge(settings: MergeSettings) -> Iterator[str]:
    """The model that all checkpoints hold. Raises UserError that names every one that is none, or another model's."""
    places = [named_checkpoint(place) for place in settings.checkpoints]
    copies = Counter(place.resolve() for place in places)
    problems = [f"{place} is there twice; give it a weight instead" for place, count in copies.items() if count > 1]
    for place in places:
        try:
            Artifact.open(place, kind="checkpoint")
            problems += [f"{place} has {told} than {places[0]}"
                         for told in unlike(places[0] / _HF_METADATA, place / _HF_METADATA)]
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("checkpoints: " + "; ".join(dict.fromkeys(problems)))
    yield from _describe(places[0] / _HF_METADATA, ParallelConfig())
    weights = settings.weights or [1.0] * len(places)
    yield from (f"{weight / sum(weights):.4g} x {place}" for weight, place in zip(weights, places, strict=True))


def _describe(folder: Path, parallel: ParallelConfig) -> Iterator[str]:
    architecture = read_architecture(folder)
    check_layout(architecture, parallel)
    yield (f"{folder}: {architecture.family}, {architecture.num_layers} layers, "
           f"{architecture.num_parameters:,} parameters, {architecture.dtype}; layout "
           f"{parallel.tensor_model_parallel_size} x tensor, {parallel.pipeline_model_parallel_size} x pipeline")
