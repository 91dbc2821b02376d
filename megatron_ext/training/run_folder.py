"""Names in a run folder, and what a run is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_ext.artifacts import is_finished, reference
from megatron_ext.config import RunConfig
from megatron_ext.identity import with_roles

LATEST = "latest"
RUN_STATE = "run_state.json"
STOP_FILE = "STOP"
EXPOSURE = "exposure.json"
_KEPT = ".kept"


def checkpoints_folder(config: RunConfig) -> Path:
    """Where the checkpoints of a run lie."""
    return config.output / "checkpoints"


def checkpoint_folder(config: RunConfig, iteration: int) -> Path:
    """Where the checkpoint after `iteration` iterations lies."""
    return checkpoints_folder(config) / f"iter_{iteration:07d}"


def checkpoint_folders(config: RunConfig) -> list[Path]:
    """The checkpoints that were published, newest first."""
    return [path for path in sorted(checkpoints_folder(config).glob("iter_???????"), reverse=True) if is_finished(path)]


def run_identity(config: RunConfig) -> dict[str, Any]:
    """What decides a run: its deciding settings, with the content of model and sources in the place of their paths."""
    identity = with_roles(config)
    identity["model"]["hf_folder"] = reference(config.model.hf_folder)["content_hash"]
    for name, source in config.data.sources.items():
        identity["data"]["sources"][name]["path"] = reference(source.path)["content_hash"]
    return identity


def skipped_until(ranges: Sequence[Sequence[int]], iteration: int) -> list[list[int]]:
    """The part of ranges of skipped iterations (counted from 1) that lies in the first `iteration` iterations."""
    return [[first, min(last, iteration)] for first, last in ranges if first <= iteration]


def mark_kept(checkpoint: Path) -> None:
    """Mark a checkpoint so that no launch, with whatever settings, removes it."""
    _marker(checkpoint).touch()


def is_kept(checkpoint: Path) -> bool:
    """Whether a checkpoint was marked to be kept."""
    return _marker(checkpoint).exists()


def _marker(checkpoint: Path) -> Path:
    return checkpoint.with_name(checkpoint.name + _KEPT)
