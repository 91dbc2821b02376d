"""Gold answers by likelihood: what is asked, what is written down of every item, and the measures that follow.

Two forms. gold: the official prompt and its answers. cloze: the question without its options, completed with the text
of one of them. A row of `gold.jsonl` is one item in one form. Bytes are those of the answer's UTF-8 text as the model
is given it: the space before it belongs to the answer.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from evaluation.poeta.likelihood import OptionScores, Question
from evaluation.poeta.metrics import mean
from evaluation.poeta.prepared import PreparedTask
from evaluation.poeta.prompts import Request
from evaluation.poeta.table import LikelihoodMeasure

GOLD = "gold.jsonl"
FORMS = ("gold", "cloze")
Row = dict[str, Any]


def form_of(measure: LikelihoodMeasure) -> str:
    """The form that a measure is taken in."""
    return measure.split("_")[0]


def questions_of(run: PreparedTask) -> Iterator[tuple[str, Request, Question]]:
    """(form, request, what is asked) of a task: the gold form of every item; the cloze form where it makes sense."""
    forms = {form_of(measure) for measure in run.task.spec.likelihood_measures}
    for request in run.requests:
        document = request.document
        options = document.options if document.right_option is not None else (document.target,)
        yield "gold", request, Question(f"{run.name}/gold", request.doc_id, request.prompt, options)
    for request in run.requests if "cloze" in forms else ():
        if request.cloze_prompt is not None and request.document.cloze is not None:
            yield "cloze", request, Question(f"{run.name}/cloze", request.doc_id, request.cloze_prompt,
                                             request.document.cloze.options)


def score_gold(runs: Sequence[PreparedTask],
               score: Callable[[Sequence[Question]], Sequence[OptionScores]]) -> dict[str, list[Row]]:
    """Task -> rows of `gold.jsonl`."""
    asked = {run.name: list(questions_of(run)) for run in runs}
    scores = iter(score([question for rows in asked.values() for _, _, question in rows]))
    return {name: [_row(name, form, request, question, next(scores)) for form, request, question in rows]
            for name, rows in asked.items()}


def _row(task: str, form: str, request: Request, question: Question, scores: OptionScores) -> Row:
    gold = request.document.right_option or 0
    num_bytes = [len(option.encode()) for option in question.options]
    per_byte = [nats / size for nats, size in zip(scores.nats, num_bytes, strict=True)]
    return {
        "task": task, "form": form, "doc_id": request.doc_id, "source_id": request.document.id,
        "prompt_sha256": hashlib.sha256(question.prompt.encode()).hexdigest(),
        "gold": gold, "nats": scores.nats[gold], "bytes": num_bytes[gold], "num_tokens": scores.num_tokens[gold],
        "rank": _rank(scores.nats, gold), "rank_per_byte": _rank(per_byte, gold),
        "options": [{"nats": nats, "bytes": size, "num_tokens": number} for nats, size, number in
                    zip(scores.nats, num_bytes, scores.num_tokens, strict=True)],
        "num_dropped_tokens": scores.num_dropped_tokens, "splits_token": scores.splits_token,
    }


def _rank(losses: Sequence[float], position: int) -> int | None:
    """1 for the lowest; of equal ones the first. None where there is nothing to choose from."""
    if len(losses) == 1:
        return None
    return 1 + sum((loss, other) < (losses[position], position) for other, loss in enumerate(losses))


def item_value(measure: LikelihoodMeasure, row: Mapping[str, Any]) -> float | None:
    """An item's value: bits a byte, or 100 for a right and 0 for a wrong choice; None where it has none."""
    match measure:
        case "gold_bits_per_byte" | "cloze_bits_per_byte":
            return row["nats"] / math.log(2) / row["bytes"]
        case "gold_accuracy":
            rank = row["rank"]
        case "cloze_accuracy":
            rank = row["rank_per_byte"]
    return None if rank is None else 100.0 * (rank == 1)


def summarise_gold(run: PreparedTask, rows: Sequence[Row]) -> dict[str, Any]:
    """What `results.json` says of a task's likelihoods."""
    measures = {}
    for measure in run.task.spec.likelihood_measures:
        chosen = [row for row in rows if row["form"] == form_of(measure)]
        values = [value for row in chosen if (value := item_value(measure, row)) is not None]
        if values:
            measures[measure] = {"value": mean(values), "num_items": len(values)} | (
                {"chance": 100 * mean([1 / len(row["options"]) for row in chosen if len(row["options"]) > 1])}
                if measure.endswith("accuracy") else {})
    return {"measures": measures,
            "num_truncated": {form: sum(row["num_dropped_tokens"] > 0 for row in rows if row["form"] == form)
                              for form in FORMS},
            "num_split_tokens": sum(row["splits_token"] for row in rows)}


def mean_gold(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Measure -> its mean over the tasks for which it makes sense, and their number."""
    found: dict[str, list[float]] = {}
    for task in tasks.values():
        for measure, one in task["likelihood"]["measures"].items():
            found.setdefault(measure, []).append(one["value"])
    return {measure: {"value": mean(values), "num_tasks": len(values)} for measure, values in found.items()}


def gold_line(row: Row) -> str:
    """A row as a line of `gold.jsonl`."""
    return json.dumps(row, ensure_ascii=False, sort_keys=True, allow_nan=False) + "\n"
