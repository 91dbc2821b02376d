"""Where every number comes from: parity of the weights, the chain of hashes, software."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.report.record import StudyRecord
from megatron_ext.artifacts import Artifact
from megatron_ext.lineage import Places, Step, trace

_LEVELS = {"comparison": "Comparison", "evaluation": "Evaluations", "checkpoint": "Checkpoints", "run": "Training runs",
           "tokenized": "Tokenized sources", "rewrites": "Rewrites", "selection": "Selections"}
_SHORT = 10


def parity_section(record: StudyRecord) -> list[dict[str, Any]]:
    """Proofs that conversions kept the logits."""
    if not record.values.get("parity"):
        record.without("No logits parity was recorded.")
    return record.values.get("parity", [])


def chain_section(record: StudyRecord) -> list[dict[str, Any]]:
    """Levels of artifacts from the comparison back to the raw inputs, each with hash and inputs."""
    steps = _all_steps(record)
    names = {step.artifact.content_hash: _place(step.artifact.path, record) for step in steps}
    consumed = {link.content_hash for step in steps if step.artifact.kind == "evaluation" for link in step.links}
    levels: dict[str, list[dict[str, Any]]] = {}
    raw: dict[str, dict[str, Any]] = {}
    for step in steps:
        levels.setdefault(_level(step, consumed), []).append(_card(step, names))
        raw |= {link.content_hash: {"name": link.name, "hash": link.content_hash[:_SHORT], "inputs": []}
                for link in step.links if link.kind in ("file", "folder")}
    order = ["Comparison", "Evaluations", "Exported models", "Checkpoints", "Training runs", "Tokenized sources",
             "Rewrites", "Selections", "Given models"]
    titles = [title for title in order if title in levels] + [title for title in levels if title not in order]
    chain = [{"title": title, "cards": sorted(levels[title], key=lambda card: card["name"])} for title in titles]
    return [*chain, {"title": "Raw inputs", "cards": list(raw.values())}] if raw else chain


def software_section(record: StudyRecord) -> dict[str, Any]:
    """Versions that the artifacts were made with; several values where they differ."""
    made_by = [step.artifact.manifest.get("made_by", {}) for step in _all_steps(record)]
    packages: dict[str, set[str]] = {}
    for one in made_by:
        for name, version in {"python": one.get("python"), **one.get("packages", {})}.items():
            if version:
                packages.setdefault(name, set()).add(version)
    commits = sorted({one["git"] for one in made_by if one.get("git")})
    return {"packages": [{"name": name, "version": ", ".join(sorted(versions))}
                         for name, versions in sorted(packages.items())],
            "commits": commits, "is_dirty": any(commit.endswith("-dirty") for commit in commits)}


def _all_steps(record: StudyRecord) -> list[Step]:
    """Chains of the comparison, the runs and the selections, each artifact once."""
    places = Places([record.folder])
    starts: list[Artifact] = []
    for place in record.inputs().values():
        artifact = record.open(str(place.relative_to(record.folder)))
        if artifact is not None:
            starts.append(artifact)
    steps: dict[str, Step] = {}
    for start in sorted(starts, key=lambda one: one.kind != "comparison"):
        for step in trace(start, places):
            steps.setdefault(step.artifact.content_hash, step)
    return list(steps.values())


def _level(step: Step, evaluated: set[str]) -> str:
    if step.artifact.kind != "hf_model":
        return _LEVELS.get(step.artifact.kind, step.artifact.kind.replace("_", " ").capitalize())
    made_here = any(link.kind == "checkpoint" for link in step.links)
    return "Exported models" if made_here and step.artifact.content_hash in evaluated else "Given models"


def _card(step: Step, names: dict[str, str]) -> dict[str, Any]:
    links = [{"name": link.name, "hash": link.content_hash[:_SHORT], "place": names.get(link.content_hash)}
             for link in step.links]
    return {"name": names[step.artifact.content_hash], "hash": step.artifact.content_hash[:_SHORT],
            "inputs": _grouped(links)}


def _grouped(links: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Inputs with one hash are one line (a model that is also the tokenizer)."""
    by_hash: dict[str, dict[str, Any]] = {}
    for link in links:
        if link["hash"] in by_hash:
            by_hash[link["hash"]]["name"] += ", " + link["name"]
        else:
            by_hash[link["hash"]] = dict(link)
    return list(by_hash.values())


def _place(path: Path, record: StudyRecord) -> str:
    return str(path.relative_to(record.folder)) if path.is_relative_to(record.folder) else path.name
