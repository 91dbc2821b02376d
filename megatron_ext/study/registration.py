"""Pre-registration: what a study asks, by which outcome it will be answered, and what of that was edited later.

At the first launch in a work folder the study's question is written down with its hash; each later launch adds what it
changes. Places, jobs and layouts are no part of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from megatron_ext.artifacts import hash_json, write_json
from megatron_ext.config import RunConfig
from megatron_ext.identity import of_roles
from megatron_ext.study.config import StudyConfig

_FOLDER = "registered"
_QUESTION = ("subsets", "style_sources", "conditions", "seeds", "validation_sources", "allow_differences")
_EVALUATION = ("primary", "baseline", "interactions", "checkpoints", "matched_by")
_LATER = {"mean_of_last": 1, "merge_last": 1, "suites": {}}
"""Settings of the evaluation that came later -> what leaves it as it was: told only where they are used."""
_PROTOCOL = ("tasks", "profile", "limit", "scoring")


def register(study: StudyConfig, work: Path) -> dict[str, Any]:
    """Write down the study's question, or what was edited since; returns what is written.

    {"sha256" of the question at the first launch, "question", "edits": [{"key", "before", "now"}, …] in their order}
    """
    path = work / _FOLDER / f"{study.slug}.json"
    question = _question(study)
    if not path.exists():
        written = {"sha256": hash_json(question), "question": question, "edits": []}
    else:
        written = json.loads(path.read_text(encoding="utf-8"))
        edits = list(_differences(_as_of_today(written), _flat(question)))
        if not edits:
            return written
        written["edits"] += edits
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, written)
    return written


def _question(study: StudyConfig) -> dict[str, Any]:
    trunk = {"trunk"} if study.trunk else set()
    values = study.model_dump(mode="json", include={*_QUESTION, "evaluation", "run", *trunk})
    evaluation = values["evaluation"]
    asked = [*_EVALUATION, *(key for key, unused in _LATER.items() if evaluation[key] != unused)]
    for suite in evaluation["suites"].values():
        suite.pop("include_path")
    values["evaluation"] = {key: evaluation[key] for key in asked} | {
        "settings": {key: evaluation["settings"][key] for key in _PROTOCOL if key in evaluation["settings"]}}
    return json.loads(json.dumps(values | {"run": of_roles(RunConfig, values["run"])}))


def _as_of_today(written: Mapping[str, Any]) -> dict[str, Any]:
    """The question as it was first, with all edits made."""
    values = _flat(written["question"])
    for edit in written["edits"]:
        values[edit["key"]] = edit["now"]
    return {key: value for key, value in values.items() if value is not None}


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            yield {"key": key, "before": before.get(key), "now": now.get(key)}


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return {key: value for key, value in flat.items() if value is not None}
