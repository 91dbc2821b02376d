"""What the study found: headline, NPM of each condition, differences, tasks."""

from __future__ import annotations

from typing import Any

from evaluation.poeta import task_names
from evaluation.report.curves import peaks_table
from evaluation.report.record import StudyRecord, joined, label, readable
from evaluation.report.scales import Scale, nice_scale

FAMILIES = {"baseline": "Against the baseline", "given": "Against the model before training",
            "others": "Other pairs"}


def results_section(record: StudyRecord) -> dict[str, Any] | None:
    """Everything that comes from comparison.json, ready to be shown; None without a comparison."""
    comparison = record.comparison()
    if comparison is None:
        record.without("No comparison of the conditions is there, so the page has no verdict.")
        return None
    conditions = [_condition(name, one) for name, one in comparison["conditions"].items()]
    differences = [_difference(one) for one in comparison["differences"]]
    interactions = [_interaction(one) for one in comparison["interactions"]]
    told = comparison["interactions"] + [one for one in comparison["differences"] if one["family"] == "baseline"]
    told.sort(key=lambda one: not one["is_claimed"])
    verdicts = [readable(one["verdict"], comparison["conditions"]) for one in told]
    return {
        "headline": _headline(comparison),
        "verdicts": verdicts,
        "caveats": comparison["caveats"],
        "baseline": label(comparison["baseline"]),
        "num_items": comparison["num_items"],
        "num_tasks": len(comparison["tasks"]),
        "num_resamples": comparison["num_resamples"],
        "profile": comparison["profile"],
        "data": comparison["data"],
        "conditions": conditions,
        "npm_scale": _scale_of([one["npm"]["all"] for one in conditions], [one["seeds"] for one in conditions]),
        "families": [{"title": title, "rows": [one for one in differences if one["family"] == family]}
                     for family, title in FAMILIES.items() if any(one["family"] == family for one in differences)],
        "interactions": interactions,
        "difference_scale": _scale_of([one["npm"] for one in differences + interactions], [], include=[0.0]),
        "tasks": [_task(task, comparison) for task in comparison["tasks"]],
        "has_all_tasks": len(comparison["tasks"]) == len(task_names()),
        "peaks": peaks_table(comparison),
        "signal": [one for one in comparison.get("signal", []) if one["noise"] is not None],
        "curves": comparison.get("curves", {}),
        "matched_by": comparison.get("matched_by"),
        "categories": _categories(comparison),
    }


def _headline(comparison: dict[str, Any]) -> dict[str, Any]:
    """The answer in one line: the claimed differences against the baseline, or that there is none."""
    primary = [one for one in comparison["differences"] if one["family"] == "baseline"]
    claimed = [one for one in primary if one["is_claimed"]]
    baseline = label(comparison["baseline"])
    if not claimed:
        items = f"{comparison['num_items']:,} item{'s' if comparison['num_items'] != 1 else ''}"
        return {"is_claimed": False,
                "text": f"No condition can be told apart from “{baseline}” on these {items}."}
    parts = [f"“{label(one['condition'])}” is {abs(one['npm']['all']['value']):.1f} NPM "
             f"{'better' if one['npm']['all']['value'] > 0 else 'worse'}" for one in claimed]
    text = joined(parts) + f" than “{baseline}”"
    if len(claimed) < len(primary):
        text += f"; for {joined(['“' + label(one['condition']) + '”' for one in primary if one not in claimed])} "
        text += "no difference can be claimed"
    return {"is_claimed": True, "text": text + "."}


def _condition(name: str, one: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "label": label(name), "is_trained": one["is_trained"], "num_seeds": one["num_seeds"],
            "npm": one["npm"], "seeds": one["npm_per_seed"] if one["num_seeds"] > 1 else []}


def _difference(one: dict[str, Any]) -> dict[str, Any]:
    return {"family": one["family"], "label": f"{label(one['condition'])} − {label(one['reference'])}",
            "npm": one["npm"]["all"], "groups": one["npm"], "p_corrected": one["p_corrected"],
            "is_claimed": one["is_claimed"]}


def _interaction(one: dict[str, Any]) -> dict[str, Any]:
    a, b, c, d = map(label, one["conditions"])
    return {"name": one["name"], "label": f"({a} − {b}) − ({c} − {d})", "npm": one["npm"]["all"],
            "p_corrected": one["p_corrected"], "is_claimed": one["is_claimed"]}


def _task(task: dict[str, Any], comparison: dict[str, Any]) -> dict[str, Any]:
    cells = {name: one["tasks"][task["name"]] for name, one in comparison["conditions"].items()}
    known = [cell["npm"]["value"] for cell in cells.values() if cell["npm"]["value"] is not None]
    best = max(known) if len(set(known)) > 1 else None
    return {**task, "cells": [{"name": name, **cell, "is_best": best is not None and cell["npm"]["value"] == best}
                              for name, cell in cells.items()]}


def _categories(comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """Each category: NPM of the conditions, and their differences from the baseline with corrected p values."""
    against = {one["condition"]: one["categories"] for one in comparison["differences"] if one["family"] == "baseline"}
    return [{
        "name": label(name), "num_tasks": len(tasks),
        "cells": [{"value": one["categories"][name]["value"], "difference": against.get(condition, {}).get(name)}
                  for condition, one in comparison["conditions"].items()],
    } for name, tasks in comparison.get("categories", {}).items()]


def _scale_of(estimates: list[dict[str, Any]], more: list[list[float]], include: list[float] | None = None) -> Scale:
    values = [estimate[key] for estimate in estimates for key in ("value", "low", "high")]
    return nice_scale([*values, *(value for group in more for value in group)], include or [0.0])

