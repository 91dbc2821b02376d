"""The settings of a suite."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from megatron_ext.identity import PLACE
from megatron_ext.settings import Settings

SuiteName = Annotated[str, Field(pattern=r"^[\w-]+$", max_length=60)]
"""Letters, digits, _ and - alone, at most 60: it stands in keys and names of files."""


class SuiteSettings(Settings):
    """Tasks of lm-evaluation-harness that are evaluated and compared together."""

    tasks: tuple[str, ...] = ()
    """Names of tasks, groups or tags, as `lm_eval --tasks` takes them; none: all tasks of `include_path`."""
    include_path: Annotated[Path | None, PLACE] = None
    """Folder of YAML files with tasks of one's own (and their data), as `lm_eval --include_path` takes it."""
    limit: int | None = Field(default=None, ge=1)
    """Items a task at most, the first ones; none: all."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Examples in a prompt; none: as each task says. A task that says 0 keeps it, as with `lm_eval --num_fewshot`."""
    metric: str | None = Field(default=None, min_length=1)
    """What its tasks are compared by, e.g. `acc_norm`, or with the name of a filter `exact_match,strict-match`; none:
    the first metric that a task names."""

    @model_validator(mode="after")
    def _names_something(self) -> SuiteSettings:
        if not self.tasks and self.include_path is None:
            raise ValueError("names no tasks; write tasks, or include_path for all tasks of a folder")
        return self
