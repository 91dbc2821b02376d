"""What the stages of a study ask of a Slurm cluster."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, field_validator

from megatron_ext.settings import REPEATS, Settings

_TIME = re.compile(r"\d+(:\d\d){0,2}|\d+-\d+(:\d\d){0,2}|UNLIMITED")


class StageJob(Settings):
    """The jobs of one stage. What is null keeps to the stage's sbatch file."""

    time: str | None = None
    """Time limit, as Slurm writes it, e.g. 1-12:00:00 or 24:00:00; minutes alone in quotes."""
    options: Annotated[list[str], REPEATS] = Field(default_factory=list)
    """Further options of sbatch, e.g. [--mem=200G, --cpus-per-task=32]."""

    @field_validator("time")
    @classmethod
    def _is_a_time(cls, time: str | None) -> str | None:
        if time is not None and not _TIME.fullmatch(time):
            raise ValueError("Slurm reads minutes, h:mm:ss, days-hours or days-hh:mm:ss, e.g. 24:00:00 or 1-12:00:00")
        return time


class GpuJob(StageJob):
    """The jobs of a stage that uses GPUs."""

    gpus: int = Field(default=1, ge=0)
    """GPUs of a job: the size of an engine's tensor-parallel group. Not asked for where site.env has no GPUs."""


class ArrayJob(StageJob):
    """The jobs of a stage whose work can be shared by the tasks of a job array."""

    parts: int = Field(default=1, ge=1, le=1001)
    """Tasks of the array, each with its part of the documents; a small job then merges them. 1: one job for all."""
    max_running: int | None = Field(default=None, ge=1)
    """Tasks that run at a time."""


class RewriteJob(ArrayJob, GpuJob):
    """The jobs of rewriting: every task is one engine on `gpus` GPUs."""


class JobSettings(Settings):
    """The jobs of each stage."""

    select: ArrayJob = ArrayJob()
    """Selecting."""
    rewrite: RewriteJob = RewriteJob()
    """Rewriting."""
    judge: GpuJob = GpuJob()
    """Judging a sample of the rewrites."""
    originals: StageJob = StageJob()
    """Taking the originals of accepted rewrites."""
    tokenize: ArrayJob = ArrayJob()
    """Tokenizing."""
    overlap: StageJob = StageJob()
    """Looking for held-out text in training text."""
    merge: StageJob = StageJob()
    """Merging the parts of an array, or checkpoints."""
    import_: StageJob = Field(default=StageJob(), alias="import")
    """Parity of the imported weights; as many processes as a model replica has."""
    run: StageJob = StageJob()
    """Training; nodes and GPUs follow from the layout."""
    validate_: StageJob = Field(default=StageJob(), alias="validate")
    """Held-out losses; as many processes as a model replica has."""
    export: StageJob = StageJob()
    """Exporting."""
    evaluate: GpuJob = GpuJob()
    """Evaluating."""
    compare: StageJob = StageJob()
    """Kept for older study files: conditions are compared by the job of the page."""
    report: StageJob = StageJob()
    """Comparing the conditions that are there, and the page."""

    def of(self, stage: str) -> StageJob:
        """The jobs of a stage by its name."""
        return getattr(self, f"{stage}_" if stage in ("import", "validate") else stage)
