"""The contract of a study: its runs differ in their data alone, and in what the study file lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from megatron_ext.artifacts import differences
from megatron_ext.config import RunConfig
from megatron_ext.errors import UserError
from megatron_ext.identity import DECIDING, LAYOUT, with_roles

FREE = ("output", "data.sources", "train.seed")
"""What may always differ: the place, the data, and the seed among runs of one condition."""


def check_contract(runs: Mapping[str, RunConfig], allowed: Sequence[str]) -> None:
    """Compare every run with the first.

    Args:
        runs: name -> run.
        allowed: keys of the run configuration in which the runs may differ besides their data.

    Raises UserError that lists every other difference.
    """
    (first, reference), *others = runs.items()
    problems = [
        f"{key} is {mine!r} in {name!r} and {theirs!r} in {first!r}"
        for name, run in others
        for key, theirs, mine in differences(_compared(reference), _compared(run))
        if not _is_below(key, [*FREE, *allowed])
    ]
    if problems:
        raise UserError("runs of a study may differ in their data alone: " + "; ".join(problems)
                        + ". Make them equal, or list the key in allow_differences")


def _compared(run: RunConfig) -> dict[str, Any]:
    """What runs must agree in: all that can touch what they compute."""
    return with_roles(run, (DECIDING, LAYOUT))


def _is_below(key: str, sections: Sequence[str]) -> bool:
    return any(key == section or key.startswith(section + ".") for section in sections)
