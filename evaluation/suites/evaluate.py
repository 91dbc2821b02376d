"""Evaluating suites: the harness builds the prompts, cuts the answers and computes the metrics; here they are kept."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from evaluation.suites.catalogue import task_manager, task_names
from evaluation.suites.settings import SuiteSettings
from megatron_ext.errors import UserError
from megatron_ext.files import finite
from megatron_ext.settings_file import shorten

if TYPE_CHECKING:
    from lm_eval.api.model import LM
    from lm_eval.api.task import Task

SUITES, SUITE_EXAMPLES = "suites.json", "suite_examples.jsonl"
Row = dict[str, Any]
_OF_CHOICES = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match")
"""Metrics that count right choices."""


def load_tasks(name: str, suite: SuiteSettings) -> dict[str, Task]:
    """Task -> the harness' task with its data, in the order of the suite, few-shot examples as `lm_eval` sets them.

    Raises UserError where the data of a task cannot be had, or the task asks for more than a language model.
    """
    _seed()
    tasks: dict[str, Task] = {}
    for asked in task_names(suite):
        tasks |= _load(f"suites.{name}.tasks = {asked}", asked, suite)
    for task_name, task in tasks.items():
        _refuse_unfit(f"suites.{name}: task {task_name}", task)
        _set_shots(task, suite.num_fewshot)
    return tasks


def evaluate_suite(name: str, suite: SuiteSettings, lm: LM) -> tuple[list[Row], dict[str, Any]]:
    """The rows of `suite_examples.jsonl`, one an item and filter, and what `suites.json` says of the suite.

    Args:
        lm: answers as the harness' own model does.
    """
    from lm_eval import evaluator

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    tasks = load_tasks(name, suite)
    evaluated = evaluator.evaluate(lm=lm, task_dict={"tasks": tasks, "groups": {}}, limit=suite.limit,
                                   bootstrap_iters=0)
    rows = {task: [_row(name, task, sample) for sample in evaluated["samples"][task]] for task in tasks}
    told = {task: {**_describe(one, suite.metric, rows[task], evaluated["results"][task]),
                   "num_fewshot": evaluated["n-shot"].get(task), "version": evaluated["versions"].get(task)}
            for task, one in tasks.items()}
    asked = suite.model_dump(mode="json", include={"limit", "num_fewshot", "metric"})
    return [row for some in rows.values() for row in some], {**asked, "task_set": list(tasks), "tasks": told}


def example_line(row: Row) -> str:
    """A row as a line of `suite_examples.jsonl`; a number that is not finite is null."""
    return json.dumps(finite(row), ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n"


def _seed() -> None:
    """The seeds of `lm_eval`'s command line: some tasks draw their items."""
    import numpy as np
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
    from lm_eval.utils import set_torch_seed

    random.seed(DEFAULT_RANDOM_SEED)
    np.random.seed(DEFAULT_OTHER_SEED)
    set_torch_seed(DEFAULT_OTHER_SEED)


def _load(where: str, asked: str, suite: SuiteSettings) -> dict[str, Task]:
    try:
        return task_manager(suite).load([asked])["tasks"]
    except Exception as error:  # whatever a task's data or code may raise
        raise UserError(f"{where}: its data or code cannot be loaded ({type(error).__name__}: {shorten(str(error))}); "
                        "data of a hub must be fetched once where there is a network (HF_HOME is where it is kept), "
                        "files must lie where the task's YAML file says") from error


def _refuse_unfit(where: str, task: Task) -> None:
    if getattr(task, "MULTIMODAL", False):
        raise UserError(f"{where} shows images or plays sound, which a language model cannot read; leave it out")
    if getattr(task, "UNSAFE_CODE", False):
        raise UserError(f"{where} runs code that the model writes, which is not done here; leave it out")


def _set_shots(task: Task, number: int | None) -> None:
    """As lm_eval.evaluator.simple_evaluate does it."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED

    own = task.get_config("num_fewshot")
    if own is None or (number is not None and own != 0):
        task.set_config(key="num_fewshot", value=number or 0)
    task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)


def _row(suite: str, task: str, sample: Mapping[str, Any]) -> Row:
    asked = _plain(sample["arguments"])
    return {
        "suite": suite, "task": task, "doc_id": sample["doc_id"], "filter": sample["filter"],
        "prompt_sha256": hashlib.sha256(json.dumps(asked, ensure_ascii=False).encode()).hexdigest(),
        "doc_sha256": sample["doc_hash"], "target": _plain(sample["target"]), "num_asked": len(asked),
        "answers": _plain(sample["filtered_resps"]),
        "metrics": {metric: _plain(sample[metric]) for metric in sample["metrics"]},
    }


def _plain(value: Any) -> Any:
    """What JSON keeps of a value."""
    from lm_eval.utils import handle_non_serializable

    return json.loads(json.dumps(value, default=handle_non_serializable, ensure_ascii=False))


def _describe(task: Task, metric: str | None, rows: Sequence[Row], results: Mapping[str, Any]) -> dict[str, Any]:
    """What does not depend on the model, and the scores, `metric,filter` -> number."""
    scores = dict(_scores(results))
    chosen = _chosen(scores, metric, task)
    name, _, filter_name = chosen.partition(",")
    return {
        "metric": name, "filter": filter_name, "score": scores[chosen], "scores": scores,
        "aggregation": _aggregation(task, name),
        "higher_is_better": bool(task.higher_is_better().get(name, True)),
        "output_type": task.OUTPUT_TYPE, "num_items": len({row["doc_id"] for row in rows}),
        "chance": _chance(task, rows) if name in _OF_CHOICES and task.OUTPUT_TYPE == "multiple_choice" else None,
    }


def _scores(results: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for key, value in results.items():
        if "," in key and "_stderr," not in key and isinstance(value, int | float):
            yield key, float(value)


def _chosen(scores: Mapping[str, float], metric: str | None, task: Task) -> str:
    """The key that a task is compared by: the named metric, else the first of its own, under its first filter."""
    order = [metric] if metric else list(task.aggregation())
    for wanted in order:
        for key in scores:
            if wanted in (key, key.partition(",")[0]):
                return key
    raise UserError(f"task {task.config.task}: has no score {metric or ''} ({', '.join(scores) or 'none at all'}); "
                    "name one of them in the suite's metric, or leave the task out")


def _aggregation(task: Task, metric: str) -> str | None:
    """The name under which the harness knows a metric's aggregation; None for one of the task's own code."""
    from lm_eval.api.registry import AGGREGATION_REGISTRY

    own = task.aggregation()
    known = (name for name, one in AGGREGATION_REGISTRY.items() if metric in own and one is own[metric])
    return next(known, None if metric in own else "mean")


def _chance(task: Task, rows: Sequence[Row]) -> float:
    """What picking each option equally often gives; every option is asked once, or twice where the metric wants its
    likelihood without the question, too."""
    times = 2 if "acc_mutual_info" in task.aggregation() else 1
    return sum(times / row["num_asked"] for row in rows) / len(rows)
