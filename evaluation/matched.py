"""Evaluations of several models, matched item by item: what cannot be compared fairly is refused here."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

from evaluation.item_scores import ItemScores, MeanScores, item_scores
from evaluation.poeta.gold import GOLD
from evaluation.poeta.npm import SAME_IN_COMPARISON, load_results, read_example
from evaluation.statistics import Model
from megatron_ext.artifacts import Artifact
from megatron_ext.errors import UserError

_REASONS = {"profile": "the profile decides prompts, few-shot items and chance levels",
            "data": "official, local and sample data hold different items",
            "task_set": "a mean over other tasks is another number",
            "deviations": "other limits, other answers"}
_SAME_IN_TASK = ("metric", "random_score", "max_score", "num_examples", "translated")
_SHOWN_PROBLEMS = 6


@dataclass(frozen=True)
class Evaluation:
    """One model's evaluation artifact."""

    name: str
    """Condition and number of the model in it, for messages."""
    model: Model
    path: Path
    results: dict[str, Any]
    """results.json."""
    examples: dict[str, list[dict[str, Any]]]
    """Task -> its rows of examples.jsonl, ordered by doc_id."""
    limit: Any
    """Items a task at most, as the evaluation was asked for."""
    changes: list[dict[str, Any]]
    """Settings that were changed while its model was trained: iteration, key, before, now."""
    engine: dict[str, Any]
    """With what the model was run: backend, dtype, device, packages; empty where an older version did not note it."""
    gold: dict[tuple[str, str], list[dict[str, Any]]]
    """(task, form) -> its rows of gold.jsonl, ordered by doc_id; empty where likelihoods were not scored."""
    content: set[str]
    """Content hashes of the evaluation and of its model."""


@dataclass(frozen=True)
class MatchedTask:
    """One task as all models answered it."""

    name: str
    metric: str
    random_score: float
    max_score: float
    translated: bool
    scores: list[float]
    """The preferred metric of each model."""
    invalid_rates: list[float | None]
    """Share of answers without a readable form, of each model."""
    items: list[ItemScores]
    """Of each model; the same items in the same order."""

    @property
    def num_items(self) -> int:
        """Items of the task."""
        return self.items[0].num_items

    @property
    def min_score(self) -> float:
        """The metric's lowest value."""
        return -1.0 if self.metric == "pearson" else 0.0

    @property
    def bounds(self) -> tuple[float, float]:
        """Lowest and highest NPM."""
        return self.npm(self.min_score), 100.0

    @property
    def one_item(self) -> float:
        """How much NPM moves when one item goes from wrong to right."""
        return 100 * self.max_score / (self.max_score - self.random_score) / self.num_items

    def value(self, score: Any) -> Any:
        """What conditions are compared by: NPM."""
        return self.npm(score)

    def npm(self, score: Any) -> Any:
        """Normalised preferred metric of a score, or of an array of scores."""
        return 100 * (score - self.random_score) / (self.max_score - self.random_score)

    def score(self, npm: float) -> float:
        """The inverse of `npm`."""
        return self.random_score + npm / 100 * (self.max_score - self.random_score)


def load_evaluations(evaluations: Mapping[str, Sequence[Path]], given: Sequence[str]) -> list[Evaluation]:
    """Read the evaluations of each condition, one a seed; conditions in `given` were not trained.

    Raises UserError, with every difference that forbids a comparison.
    """
    loaded = [_load(condition, position, folder, condition not in given)
              for condition, folders in evaluations.items() for position, folder in enumerate(folders)]
    refuse_incomparable(loaded[0], loaded[1:])
    return loaded


def refuse_incomparable(first: Evaluation, others: Sequence[Evaluation]) -> None:
    """Raise UserError, with every difference, unless the others were made in the same way as the first."""
    problems = [problem for other in others for problem in _mismatches(first, other)]
    if problems:
        more = f"; and {len(problems) - _SHOWN_PROBLEMS} more" if len(problems) > _SHOWN_PROBLEMS else ""
        raise UserError("these evaluations cannot be compared: " + "; ".join(problems[:_SHOWN_PROBLEMS]) + more
                        + ". Evaluate all models with the same settings and data")


def match_tasks(evaluations: Sequence[Evaluation]) -> list[MatchedTask]:
    """The tasks of evaluations that `load_evaluations` found to be comparable. Raises UserError when there are none."""
    if not evaluations[0].results["task_set"]:
        raise UserError(f"{evaluations[0].path} holds no task of PoETa V2; evaluation.compare_suites compares suites")
    return [_match(name, evaluations) for name in evaluations[0].results["task_set"]]


def match_means(checkpoints: Sequence[Sequence[Evaluation]]) -> list[MatchedTask]:
    """The tasks, each score the mean over some checkpoints of a model.

    Args:
        checkpoints: for each of them the evaluations of all models, in the same order.
    """
    return [_mean_of(matched) for matched in zip(*map(match_tasks, checkpoints), strict=True)]


def _mean_of(matched: Sequence[MatchedTask]) -> MatchedTask:
    by_model = zip(*(one.scores for one in matched), strict=True)
    rates = zip(*(one.invalid_rates for one in matched), strict=True)
    return replace(
        matched[-1], scores=[sum(scores) / len(matched) for scores in by_model],
        invalid_rates=[None if None in some else sum(some) / len(matched) for some in rates],
        items=[MeanScores(list(items)) for items in zip(*(one.items for one in matched), strict=True)])


def _load(condition: str, position: int, folder: Path, is_trained: bool) -> Evaluation:
    artifact = Artifact.open(folder, kind="evaluation")
    results = load_results(folder)
    examples: dict[str, list[dict[str, Any]]] = {task: [] for task in results["tasks"]}
    with open(folder / "examples.jsonl", encoding="utf-8") as file:
        for line in file:
            row = read_example(line)
            examples.setdefault(row["task"], []).append(row)
    for rows in examples.values():
        rows.sort(key=lambda row: row["doc_id"])
    return Evaluation(f"{condition} (model {position + 1})", Model(condition, is_trained), folder, results, examples,
                      artifact.settings.get("limit"), artifact.counts.get("changes", []),
                      _engine_of(artifact), _read_gold(folder / GOLD), _content_of(artifact))


def _read_gold(path: Path) -> dict[tuple[str, str], list[dict[str, Any]]]:
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    if path.exists():
        with open(path, encoding="utf-8") as file:
            for row in map(json.loads, file):
                found.setdefault((row["task"], row["form"]), []).append(row)
    return {key: sorted(rows, key=lambda row: row["doc_id"]) for key, rows in found.items()}


def _engine_of(artifact: Artifact) -> dict[str, Any]:
    noted = artifact.counts.get("engine", {})
    versions = {f"version of {package}": found for package, found in noted.get("packages", {}).items()}
    return {**{key: value for key, value in noted.items() if key != "packages"}, **versions}


def _content_of(artifact: Artifact) -> set[str]:
    model = artifact.manifest["request"]["inputs"].get("model")
    return {artifact.content_hash, *([model["content_hash"]] if model else [])}


def refuse_copies(evaluations: Sequence[Evaluation]) -> None:
    """Raise UserError where one condition counts an evaluation, or a model, twice: copies are no second seed."""
    problems = [f"{one.path} and {other.path} ({one.name}, {other.name})"
                for one, other in combinations(evaluations, 2)
                if one.model.condition == other.model.condition and one.content & other.content]
    if problems:
        raise UserError("the same evaluation, or the same model, would count as two seeds of a condition: "
                        f"{'; '.join(problems)}. Name each trained model once")


def uneven_engines(evaluations: Sequence[Evaluation]) -> list[str]:
    """In what the engines that ran the models differ: `dtype bfloat16 for low (model 1), float32 for others`."""
    found = []
    for key in sorted({key for evaluation in evaluations for key in evaluation.engine}):
        users: dict[str, list[str]] = {}
        for evaluation in evaluations:
            users.setdefault(str(evaluation.engine.get(key, "not noted")), []).append(evaluation.name)
        if len(users) > 1:
            found.append(f"{key} {', '.join(f'{value} for {_some(names)}' for value, names in users.items())}")
    return found


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{', '.join(names[:2])}{more}"


def uneven_changes(evaluations: Sequence[Evaluation]) -> list[str]:
    """What was changed on the way in some trained models and not, or not then, in all others."""
    told = {evaluation.name: {(one["iteration"], one["key"], str(one["before"]), str(one["now"]))
                              for one in evaluation.changes}
            for evaluation in evaluations if evaluation.model.is_trained}
    in_all = set.intersection(*told.values()) if told else set()
    return [f"{name}: {key} from {before} to {now} after iteration {iteration:,}"
            for name, changes in told.items() for iteration, key, before, now in sorted(changes - in_all)]


def _mismatches(first: Evaluation, other: Evaluation) -> list[str]:
    pair = f"{first.name} and {other.name}"
    problems = [f"{key} of {pair}: {first.results[key]!r} and {other.results[key]!r} ({_REASONS[key]})"
                for key in SAME_IN_COMPARISON if first.results[key] != other.results[key]]
    if first.limit != other.limit:
        problems.append(f"limit of {pair}: {first.limit!r} and {other.limit!r} items a task")
    for task in first.results["tasks"]:
        if task in other.results["tasks"]:
            problems += _task_mismatches(task, first, other)
    return problems


def _task_mismatches(task: str, first: Evaluation, other: Evaluation) -> list[str]:
    mine, theirs = first.results["tasks"][task], other.results["tasks"][task]
    problems = [f"task {task}: {key} is {mine[key]!r} for {first.name}, {theirs[key]!r} for {other.name}"
                for key in _SAME_IN_TASK if mine[key] != theirs[key]]
    if problems:
        return problems
    for row, other_row in zip(first.examples[task], other.examples[task], strict=False):
        if row["doc_id"] != other_row["doc_id"]:
            return [f"task {task}: item {row['doc_id']!r} of {first.name} faces item {other_row['doc_id']!r} of "
                    f"{other.name}"]
        if row["prompt_sha256"] != other_row["prompt_sha256"]:
            return [f"task {task}, item {row['doc_id']}: the prompts of {first.name} and {other.name} differ "
                    f"({row['prompt_sha256'][:12]} and {other_row['prompt_sha256'][:12]})"]
    if len(first.examples[task]) != len(other.examples[task]):
        return [f"task {task}: {len(first.examples[task])} items of {first.name}, {len(other.examples[task])} of "
                f"{other.name}"]
    return []


def _match(name: str, evaluations: Sequence[Evaluation]) -> MatchedTask:
    info = evaluations[0].results["tasks"][name]
    results = [evaluation.results["tasks"][name] for evaluation in evaluations]
    runs = [[row["metrics"] for row in evaluation.examples[name]] for evaluation in evaluations]
    if not runs[0]:
        raise UserError(f"task {name}: {evaluations[0].path} holds no examples of it")
    scores = [math.nan if result["score"] is None else float(result["score"]) for result in results]
    return MatchedTask(
        name, info["metric"], info["random_score"], info["max_score"], bool(info["translated"]), scores,
        [result.get("invalid_rate") for result in results],
        item_scores(name, info["metric"], scores, info["max_score"], runs, evaluations[0].results["profile"]))
