"""What a study cost: time and GPU-hours of each stage, and NPM gained per GPU-hour."""

from __future__ import annotations

from typing import Any

from evaluation.report.record import StudyRecord, label
from megatron_ext.progress import format_seconds

GPU_STAGES = ("rewrite", "judge", "import", "run", "export", "evaluate")
"""Stages that run a model. A GPU-hour is an hour of one of their devices: of a process where there are no GPUs."""


def cost_section(record: StudyRecord, comparison: dict[str, Any] | None) -> dict[str, Any] | None:
    """Seconds and GPU-hours of each stage, summed over its nodes; None when no time was recorded."""
    stages: dict[str, dict[str, Any]] = {}
    for one in record.values.get("stages", []):
        stage = stages.setdefault(one["name"].split("/")[0], {"seconds": 0.0, "num_nodes": 0, "gpu_hours": 0.0})
        stage["seconds"] += one["seconds"]
        stage["gpu_hours"] += _gpu_hours(one)
        stage["num_nodes"] += 1
    total = sum(one["seconds"] for one in stages.values())
    if not total:
        record.without("No stage times were recorded.")
        return None
    return {
        "total": format_seconds(total),
        "gpu_hours": sum(one["gpu_hours"] for one in stages.values()),
        "stages": [{"name": name, **one, "time": format_seconds(one["seconds"]),
                    "percent": 100 * one["seconds"] / total} for name, one in stages.items()],
        "gains": _gains(record, comparison) if comparison else [],
    }


def _gpu_hours(stage: dict[str, Any]) -> float:
    if stage["name"].split("/")[0] not in GPU_STAGES:
        return 0.0
    return stage["seconds"] * stage["num_devices"] / 3600


def _gains(record: StudyRecord, comparison: dict[str, Any]) -> list[dict[str, Any]]:
    """NPM over the model before training, per GPU-hour of training one run and its trunk, and of rewriting what it was
    trained on."""
    before = next((one["npm"]["all"]["value"] for one in comparison["conditions"].values() if not one["is_trained"]),
                  None)
    gains, trunk = [], record.values.get("trunk")
    shared = _hours_of(record, trunk.rpartition("-")[0]) if trunk else 0.0
    for condition in record.conditions:
        npm = comparison["conditions"].get(condition, {}).get("npm", {}).get("all", {}).get("value")
        training, rewriting = shared + _hours_of(record, f"run/{condition}/"), _rewriting_hours(record, condition)
        hours = training + rewriting
        if npm is not None and before is not None and hours:
            gains.append({"condition": label(condition), "gain": npm - before, "training_hours": training,
                          "rewriting_hours": rewriting, "gain_per_hour": (npm - before) / hours})
    return gains


def _hours_of(record: StudyRecord, prefix: str) -> float:
    """GPU-hours of one run of a condition: mean over its seeds."""
    hours = [_gpu_hours(one) for one in record.values["stages"] if one["name"].startswith(prefix)]
    return sum(hours) / len(hours) if hours else 0.0


def _rewriting_hours(record: StudyRecord, condition: str) -> float:
    """GPU-hours of the rewrites that a condition's sources were made of."""
    inputs = {link["content_hash"] for run in record.runs(condition)[:1]
              for link in run.manifest["request"]["inputs"].values()}
    used = [artifact for artifact in record.named("tokenized").values() if artifact.content_hash in inputs]
    sources = {link["content_hash"] for artifact in used for link in artifact.manifest["request"]["inputs"].values()}
    names = {f"rewrite/{name}" for name, artifact in record.named("rewrites").items()
             if artifact.content_hash in sources}
    return sum(_gpu_hours(one) for one in record.values["stages"] if one["name"] in names)
