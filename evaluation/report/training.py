"""What the runs were: blends, the contract that only data differ, exposure, losses, speed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import yaml

from evaluation.report.record import StudyRecord, flat, label
from evaluation.report.scales import source_colors
from megatron_ext.artifacts import Artifact

BASE = "base"
_DATA_KEYS = ("output", "data.sources", "validation.sources", "model.hf_folder")
_SHOWN = {
    "data.seq_length": "sequence length, tokens", "train.budget_tokens": "budget, tokens",
    "train.global_batch_size": "global batch, samples", "optimizer.lr": "peak learning rate",
    "optimizer.min_lr": "final learning rate", "optimizer.weight_decay": "weight decay",
    "schedule.style": "schedule", "schedule.warmup_fraction": "warm-up, fraction", "model.dtype": "precision",
    "parallel.tensor_model_parallel_size": "tensor parallel",
    "parallel.pipeline_model_parallel_size": "pipeline parallel",
}


def training_section(record: StudyRecord) -> dict[str, Any] | None:
    """Blend, contract, exposure and losses of all runs; None when no run is there."""
    runs = {condition: record.runs(condition) for condition in record.conditions}
    runs = {condition: artifacts for condition, artifacts in runs.items() if artifacts}
    if not runs:
        record.without("No training run is there: blends, exposure and losses are left out.")
        return None
    ledgers = {condition: [_ledger(run) for run in artifacts] for condition, artifacts in runs.items()}
    exposure = {condition: [one["sources"] for one in seeds] for condition, seeds in ledgers.items()}
    sources = list(dict.fromkeys(name for seeds in exposure.values() for name in seeds[0]))
    trunk = next(iter(ledgers.values()))[0].get("trunk")
    behind = [row for row in _metrics(record.trunk) if row["event"] == "train"] if record.trunk else []
    metrics = {condition: [_metrics(run) for run in artifacts] for condition, artifacts in runs.items()}
    return {
        "source_colors": source_colors(list(dict.fromkeys([*sources, *(trunk or {}).get("sources", [])]))),
        "blends": [_blend(condition, seeds[0]) for condition, seeds in exposure.items()],
        "trunk": trunk and _blend("the shared trunk", trunk["sources"]),
        "contract": _contract(record, runs),
        "exposure": [{"condition": label(condition), "source": label(name), **values}
                     for condition, seeds in exposure.items() for name, values in seeds[0].items()],
        "losses": _held_out(record) or _losses(metrics),
        "curves": {condition: [_curves([*behind, *rows]) for rows in seeds] for condition, seeds in metrics.items()},
        "speed": [{"condition": label(condition), "tokens_per_second": _median_speed(seeds)}
                  for condition, seeds in metrics.items()],
        "budget_tokens": next(iter(runs.values()))[0].counts["tokens"],
    }


def _ledger(run: Artifact) -> dict[str, Any]:
    return json.loads((run.path / "exposure.json").read_text(encoding="utf-8"))


def _metrics(run: Artifact) -> list[dict[str, Any]]:
    with open(run.path / "metrics.jsonl", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _blend(condition: str, sources: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    total = sum(values["seen_tokens"] for values in sources.values()) or 1
    return {"condition": label(condition), "tokens": total, "parts": [
        {"source": name, "label": label(name), "tokens": values["seen_tokens"],
         "percent": 100 * values["seen_tokens"] / total, "epochs": values["epochs"]}
        for name, values in sources.items() if values["seen_tokens"]]}


def _contract(record: StudyRecord, runs: Mapping[str, list[Artifact]]) -> dict[str, Any]:
    """What all runs share, and every setting besides data and seed in which they do not."""
    settings = [flat(yaml.safe_load((run.path / "config.yaml").read_text(encoding="utf-8")))
                for artifacts in runs.values() for run in artifacts]
    names = [f"{label(condition)} #{number + 1}" for condition, artifacts in runs.items()
             for number in range(len(artifacts))]
    keys = sorted({key for one in settings for key in one if not key.startswith(_DATA_KEYS) and key != "train.seed"})
    differing = [{"key": key, "values": _values_by_run(key, names, settings),
                  "is_allowed": key in record.values.get("settings", {}).get("allow_differences", [])}
                 for key in keys if len({json.dumps(one.get(key)) for one in settings}) > 1]
    bases = {run.manifest["request"]["inputs"].get("model", {}).get("content_hash")
             for artifacts in runs.values() for run in artifacts}
    shared = [{"name": name, "value": settings[0][key]} for key, name in _SHOWN.items()
              if key in settings[0] and key not in {one["key"] for one in differing}]
    return {"num_runs": len(settings), "num_keys": len(keys), "differing": differing, "shared": shared,
            "same_base": len(bases) == 1, "seeds": sorted({one.get("train.seed") for one in settings}, key=str)}


def _values_by_run(key: str, names: list[str], settings: list[dict[str, Any]]) -> str:
    by_value: dict[str, list[str]] = {}
    for name, one in zip(names, settings, strict=True):
        by_value.setdefault(json.dumps(one.get(key)), []).append(name)
    return "; ".join(f"{value} in {', '.join(members)}" for value, members in by_value.items())


def _held_out(record: StudyRecord) -> dict[str, Any] | None:
    """Held-out loss of each source before and after training, mean over seeds, as the stage of its own measured it."""
    measured = {name: artifact.counts["sources"] for name, artifact in record.named("held_out").items()}
    if BASE not in measured:
        return None
    before, table = measured[BASE], []
    for condition in record.conditions:
        after = [measured[name] for seed in record.seeds(condition)
                 if (name := f"{condition}/seed{seed}") in measured]
        if after:
            sources = [name for name in before if all(name in one for one in after)]
            table.append({"condition": label(condition), "sources": {name: {
                key: {"before": before[name][key], "after": _mean(one[name][key] for one in after)}
                for key in ("nats_per_token", "bits_per_byte")} for name in sources}})
    return {"sources": list(before), "rows": table}


def _losses(metrics: Mapping[str, list[list[dict[str, Any]]]]) -> dict[str, Any]:
    """Held-out loss of each source before and after training, mean over seeds."""
    table = []
    for condition, seeds in metrics.items():
        validations = [[row for row in rows if row["event"] == "validation"] for rows in seeds]
        if not all(validations):
            continue
        sources = validations[0][0]["sources"]
        table.append({"condition": label(condition), "sources": {name: {
            key: {"before": _mean(rows[0]["sources"][name][key] for rows in validations),
                  "after": _mean(rows[-1]["sources"][name][key] for rows in validations)}
            for key in ("nats_per_token", "bits_per_byte")} for name in sources}})
    return {"sources": list(table[0]["sources"]) if table else [], "rows": table}


def _curves(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Training loss over tokens, and held-out bits per byte of each source."""
    train = [row for row in rows if row["event"] == "train"]
    tokens = {row["iteration"]: row["tokens"] for row in rows if "tokens" in row} | {0: 0}
    validation = [row for row in rows if row["event"] == "validation"]
    sources = validation[0]["sources"] if validation else {}
    return {
        "train": {"tokens": [row["tokens"] for row in train], "loss": [row["loss"] for row in train]},
        "validation": {name: {"tokens": [tokens[row["iteration"]] for row in validation],
                              "bits_per_byte": [row["sources"][name]["bits_per_byte"] for row in validation]}
                       for name in sources},
    }


def _median_speed(seeds: list[list[dict[str, Any]]]) -> float | None:
    speeds = [row["tokens_per_second"] for rows in seeds for row in rows if row["event"] == "train"]
    return float(np.median(speeds)) if speeds else None


def _mean(values: Any) -> float:
    return float(np.mean(list(values)))
