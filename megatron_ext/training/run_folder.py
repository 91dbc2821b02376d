"""Names in a run folder, and what a run is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_ext.artifacts import is_finished, reference
from megatron_ext.config import RunConfig
from megatron_ext.identity import of_roles, with_roles
from megatron_ext.settings import validate

LATEST = "latest"
RUN_STATE = "run_state.json"
STOP_FILE = "STOP"
EXPOSURE = "exposure.json"
_KEPT = ".kept"


def checkpoints_folder(config: RunConfig) -> Path:
    """Where the checkpoints of a run lie."""
    return config.output / "checkpoints"


def checkpoint_name(iteration: int) -> str:
    """Folder of a checkpoint below a run's `checkpoints`."""
    return f"iter_{iteration:07d}"


def checkpoint_folder(config: RunConfig, iteration: int) -> Path:
    """Where the checkpoint after `iteration` iterations lies."""
    return checkpoints_folder(config) / checkpoint_name(iteration)


def checkpoint_folders(config: RunConfig) -> list[Path]:
    """The checkpoints that were published, newest first."""
    return [path for path in sorted(checkpoints_folder(config).glob("iter_???????"), reverse=True) if is_finished(path)]


def run_inputs(config: RunConfig) -> dict[str, Path]:
    """Name -> what a run is made from."""
    sources = {f"source {name}": source.path for name, source in config.data.sources.items()}
    trunk = {"trunk": config.start.checkpoint} if config.start else {}
    return {"model": config.model.hf_folder, **trunk, **sources}


def run_identity(config: RunConfig) -> dict[str, Any]:
    """What decides a run: its deciding settings, with the content of model, sources and trunk in the place of their
    paths."""
    identity = with_roles(config)
    identity["model"]["hf_folder"] = reference(config.model.hf_folder)["content_hash"]
    for name, source in config.data.sources.items():
        identity["data"]["sources"][name]["path"] = reference(source.path)["content_hash"]
    if config.start:
        identity["start"]["checkpoint"] = reference(config.start.checkpoint)["content_hash"]
    return identity


def identity_as_today(identity: Mapping[str, Any]) -> dict[str, Any]:
    """An identity as today's version gives it; what an older version has not recorded is as by default."""
    today = of_roles(RunConfig, identity, defaults=True)
    today["model"]["hf_folder"] = identity["model"]["hf_folder"]
    for name, source in today["data"]["sources"].items():
        source["path"] = identity["data"]["sources"][name]["path"]
    if today.get("start"):
        today["start"]["checkpoint"] = identity["start"]["checkpoint"]
    return today


def config_of(identity: Mapping[str, Any]) -> RunConfig:
    """A run of this identity, with contents in the place of paths."""
    return validate(RunConfig, {**identity_as_today(identity), "output": "."}, where="the settings of a checkpoint")


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
