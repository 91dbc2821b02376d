"""NPM, the normalised preferred metric of PoETa V2.

For a task: 100 x (score - random) / (max - random), with the task's preferred metric on its own scale, not clipped.
NPM of a model: the plain mean over all tasks, and over the native and the translated ones.
A NaN score (a constant predictor has no Pearson correlation) makes every mean that holds it NaN, as upstream.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evaluation.poeta import Profile, load_task, task_spec
from megatron_ext.artifacts import Artifact
from megatron_ext.errors import UserError
from megatron_ext.files import finite

SAME_IN_COMPARISON = ("profile", "data", "task_set", "deviations")


def preferred_score(task_name: str, examples: Sequence[Mapping[str, Any]], profile: Profile = "official") -> float:
    """The task's preferred metric over per-example metrics, as `examples.jsonl` holds them, on the metric's scale.

    Examples may be repeated or left out (a bootstrap sample). NaN where the metric is undefined on them.
    """
    task = load_task(task_name, profile)
    metric = task.spec.metric
    values = [metrics[metric] for metrics in examples if metric in metrics]
    return task.aggregations[metric](values) if values else math.nan


def task_npm(task_name: str, score: float) -> float:
    """NPM of one task from its preferred metric, profile official (clean computes its random scores from the data)."""
    return task_spec(task_name).normalise(score)


def mean_npm(npm_per_task: Mapping[str, float], profile: Profile = "official") -> dict[str, float | None]:
    """{"all", "native", "translated"}: plain means over tasks; None for a group without a task."""
    groups = {
        "all": list(npm_per_task),
        "native": [name for name in npm_per_task if not task_spec(name, profile).translated],
        "translated": [name for name in npm_per_task if task_spec(name, profile).translated],
    }
    return {group: _mean([npm_per_task[name] for name in names]) for group, names in groups.items()}


def load_results(evaluation: Path | str) -> dict[str, Any]:
    """`results.json` of an evaluation artifact."""
    artifact = Artifact.open(evaluation, kind="evaluation")
    return json.loads((artifact.path / "results.json").read_text(encoding="utf-8"))


def load_examples(evaluation: Path | str) -> list[dict[str, Any]]:
    """The rows of an evaluation's `examples.jsonl`, by task in official order, then by document."""
    artifact = Artifact.open(evaluation, kind="evaluation")
    lines = (artifact.path / "examples.jsonl").read_text(encoding="utf-8").split("\n")
    return [read_example(line) for line in lines if line]


def write_example(row: Mapping[str, Any]) -> str:
    """A line of `examples.jsonl`; a number that is not finite (an answer may be one) is null."""
    return json.dumps(finite(row), ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n"


def read_example(line: str) -> dict[str, Any]:
    """A line of `examples.jsonl`: null among the metrics, or in a pair of them, is NaN."""
    row = json.loads(line)
    return {**row, "metrics": _with_nan(row["metrics"])} if "metrics" in row else row


def _with_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_nan(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_with_nan(one) for one in value]
    return math.nan if value is None else value


def refuse_mixture(results: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise UserError unless the named results may be compared: same profile, data, tasks, limits and settings."""
    names = list(results)
    for name in names[1:]:
        for key in SAME_IN_COMPARISON:
            first, other = results[names[0]][key], results[name][key]
            if first != other:
                raise UserError(f"{names[0]} and {name} cannot be compared: {key} is {first!r} in one and {other!r} in "
                                "the other; evaluate both in the same way")


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return sum(values) / len(values) if values else None
