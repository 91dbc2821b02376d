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


def trunk_problems(runs: Mapping[str, RunConfig], trunk: RunConfig) -> list[str]:
    """Why conditions cannot leave their trunk where it ends (none: they can)."""
    problems = []
    for name, run in runs.items():
        if run.train_iters <= trunk.train_iters:
            problems.append(f"tokens {trunk.train.budget_tokens:,} leave nothing of train.budget_tokens "
                            f"{run.train.budget_tokens:,} to {name!r}; lower the first or raise the second")
        elif run.decay_start < trunk.num_samples:
            problems.append(f"the {run.schedule.style} decay of {name!r} begins after "
                            f"{round(run.decay_start) * run.data.seq_length:,} tokens, before the trunk is left at "
                            f"{trunk.num_samples * run.data.seq_length:,}: give schedule.style WSD with a decay that "
                            "fits into the branch (decay_tokens), or constant")
    return list(dict.fromkeys(problems))


def _compared(run: RunConfig) -> dict[str, Any]:
    """What runs must agree in: all that can touch what they compute."""
    return with_roles(run, (DECIDING, LAYOUT))


def _is_below(key: str, sections: Sequence[str]) -> bool:
    return any(key == section or key.startswith(section + ".") for section in sections)
