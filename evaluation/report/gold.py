"""Likelihoods of gold answers: each measure over the tasks for which it makes sense."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from evaluation.measures import MEASURES, Measure
from evaluation.report.measured import charted, headline
from evaluation.report.record import StudyRecord, label, readable

TITLES = {"gold_bits_per_byte": "Loss of the right answers", "cloze_bits_per_byte": "Loss of the right options' texts",
          "gold_accuracy": "The right answer is the likeliest option",
          "cloze_accuracy": "The right option's text is the likeliest per byte"}


def gold_section(record: StudyRecord) -> dict[str, Any] | None:
    """What comparison.json says of gold answers, ready to be shown; None where they were not scored."""
    comparison = record.comparison() or {}
    gold = comparison.get("gold")
    if gold is None:
        return None
    measures = [_measure(one, MEASURES[one["measure"]["name"]]) for one in gold["measures"]]
    return {"measures": measures, "caveats": gold["caveats"], "verdicts": list(_verdicts(gold)),
            "headline": next((_headline(one, comparison["baseline"]) for one in gold["measures"]
                              if one["measure"]["name"] == gold["primary"]), None)}


def _headline(one: dict[str, Any], baseline: str) -> dict[str, Any]:
    return headline(one, MEASURES[one["measure"]["name"]], baseline, "By likelihood", one["num_items"])


def _verdicts(gold: dict[str, Any]) -> Iterator[str]:
    """What is claimed, of any measure, for the head of the page; what is not stands in the section."""
    told = [(one, contrast) for one in gold["measures"] for contrast in [*one["interactions"], *one["differences"]]
            if contrast["family"] in ("baseline", "interactions")]
    for one, contrast in told:
        if contrast["is_claimed"]:
            yield readable(contrast["verdict"], one["conditions"])
    if told and not any(contrast["is_claimed"] for _, contrast in told):
        yield "By the likelihood of right answers no difference can be claimed either."


def _measure(one: dict[str, Any], measure: Measure) -> dict[str, Any]:
    return {"title": TITLES[measure.name], "num_items": one["num_items"], "chance": one["chance"],
            "direction": "more" if measure.higher_is_better else "less",
            "tasks": [label(task["name"]) for task in one["tasks"]], **charted(one, measure)}
