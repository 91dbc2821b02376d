"""Suites of the harness' own tasks: every metric of a suite over its tasks, and each task."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from evaluation.measures import Measure
from evaluation.report.measured import charted, headline
from evaluation.report.record import StudyRecord, label, readable


def suite_section(record: StudyRecord) -> dict[str, Any] | None:
    """Everything that comes from suite_comparison.json, ready to be shown; None where there were no suites."""
    comparison = record.suite_comparison()
    if comparison is None:
        return None
    parts = sorted(comparison["suites"], key=lambda one: one["suite"] != comparison["primary"])
    return {"parts": [_part(one, comparison) for one in parts], "num_resamples": comparison["num_resamples"],
            "caveats": comparison["caveats"], "verdicts": list(_verdicts(parts)),
            "headline": next((_headline(one, comparison["baseline"]) for one in parts
                              if one["suite"] == comparison["primary"]), None)}


def _headline(one: dict[str, Any], baseline: str) -> dict[str, Any]:
    return headline(one, Measure(**one["measure"]), baseline, f"On suite “{label(one['suite'])}”", one["num_items"])


def _verdicts(parts: list[dict[str, Any]]) -> Iterator[str]:
    """What is claimed, of any suite, for the head of the page; what is not stands in the section."""
    told = [(one, contrast) for one in parts for contrast in [*one["interactions"], *one["differences"]]
            if contrast["family"] in ("baseline", "interactions")]
    for one, contrast in told:
        if contrast["is_claimed"]:
            yield readable(contrast["verdict"], one["conditions"])
    if told and not any(contrast["is_claimed"] for _, contrast in told):
        yield "On the suites no difference can be claimed."


def _part(one: dict[str, Any], comparison: dict[str, Any]) -> dict[str, Any]:
    measure = Measure(**one["measure"])
    conditions = one["conditions"].values()
    return {"suite": label(one["suite"]), "num_items": one["num_items"], "chance": one["chance"],
            "is_primary": one["suite"] == comparison["primary"],
            "direction": "more" if measure.higher_is_better else "less",
            "tasks": [{**task, "cells": [condition["tasks"][task["name"]] for condition in conditions]}
                      for task in one["tasks"]], **charted(one, measure)}
