"""NPM along training, and its peaks in the layout of the paper's table 1."""

from __future__ import annotations

from typing import Any

from evaluation.poeta import task_names
from evaluation.report.record import label

PAPER_TABLE_1 = {
    "high_with_rewrites": {"7B": (41.0, "30B"), "1.1B": (15.1, "25B")},
    "high": {"7B": (38.5, "20B"), "1.1B": (13.7, "30B")},
    "low_with_rewrites": {"7B": (35.8, "20B"), "1.1B": (13.8, "30B")},
    "low": {"7B": (35.2, "20B"), "1.1B": (15.1, "20B")},
    "base": {"7B": (29.5, "0"), "1.1B": (10.2, "0")},
}
"""Condition as the shipped studies name it -> model size -> peak NPM and tokens there: arXiv 2603.24826, table 1.
base: the public leaderboard's Llama-2 7B and TinyLlama 1T."""


def peaks_table(comparison: dict[str, Any]) -> dict[str, Any]:
    """Each condition's highest NPM and the tokens there, beside the published ones where they compare.

    They compare when all 44 tasks were evaluated by the official protocol.
    """
    is_official = comparison["profile"] == "official" and not comparison["deviations"]
    has_published = is_official and len(comparison["tasks"]) == len(task_names())
    rows = [_row(name, one, comparison, has_published) for name, one in comparison["conditions"].items()]
    return {"rows": rows, "sizes": ["7B", "1.1B"] if has_published else [],
            "has_curves": bool(comparison.get("curves"))}


def _row(name: str, one: dict[str, Any], comparison: dict[str, Any], has_published: bool) -> dict[str, Any]:
    points = [point for point in comparison.get("curves", {}).get(name, []) if point["npm"]["value"] is not None]
    peak = max(points, key=lambda point: point["npm"]["value"], default={"npm": one["npm"]["all"], "tokens": None})
    return {"label": label(name), "npm": {group: estimate["value"] for group, estimate in one["npm"].items()},
            "peak": peak["npm"], "peak_tokens": peak["tokens"],
            "published": PAPER_TABLE_1.get(name, {}) if has_published else {}}
