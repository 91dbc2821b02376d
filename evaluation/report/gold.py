"""Likelihoods of gold answers: each measure over the tasks for which it makes sense."""

from __future__ import annotations

from typing import Any

from evaluation.measures import MEASURES, Measure
from evaluation.report.measured import charted
from evaluation.report.record import StudyRecord, label

TITLES = {"gold_bits_per_byte": "Loss of the right answers", "cloze_bits_per_byte": "Loss of the right options' texts",
          "gold_accuracy": "The right answer is the likeliest option",
          "cloze_accuracy": "The right option's text is the likeliest per byte"}


def gold_section(record: StudyRecord) -> dict[str, Any] | None:
    """What comparison.json says of gold answers, ready to be shown; None where they were not scored."""
    gold = (record.comparison() or {}).get("gold")
    if gold is None:
        return None
    measures = [_measure(one, MEASURES[one["measure"]["name"]]) for one in gold["measures"]]
    return {"measures": measures, "caveats": gold["caveats"],
            "verdicts": [verdict for one in measures for verdict in one["verdicts"]]}


def _measure(one: dict[str, Any], measure: Measure) -> dict[str, Any]:
    return {"title": TITLES[measure.name], "num_items": one["num_items"],
            "direction": "more" if measure.higher_is_better else "less",
            "tasks": [label(task["name"]) for task in one["tasks"]], **charted(one, measure)}
