"""What the report is made from: one JSON file that names the study's artifacts by their part in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_ext.artifacts import Artifact, is_finished, write_json
from megatron_ext.redaction import redact
from megatron_ext.study.arms import missing_conditions, narrowed
from megatron_ext.study.config import StudyConfig
from megatron_ext.study.graph import build_graph
from megatron_ext.study.job_settings import GpuJob
from megatron_ext.study.jobs import FETCHED_HERE
from megatron_ext.study.names import BASE, TRUNK
from megatron_ext.study.nodes import Node
from megatron_ext.study.registration import register
from megatron_ext.study.runner import stage_seconds


def write_study_record(study: StudyConfig, nodes: list[Node], work: Path) -> Path:
    """Write `<work>/study-<name>.json` for evaluation.report; places in it are relative to `work`. Returns its path."""
    nodes = [there for node in nodes if (there := narrowed(node, work) or node)]
    comparison = next(node for node in nodes if node.kind == "comparison")
    asked = next(node for node in build_graph(study) if node.kind == "comparison")
    place = {node.name: str(node.output(work).relative_to(work)) for node in nodes}
    seconds = stage_seconds(nodes, work)
    record = {
        "name": study.name,
        "description": study.description,
        "settings": study.model_dump(mode="json", exclude={"jobs", "cost"}),
        "base": {"model": place[f"model/{BASE}"], "evaluation": place[f"evaluate/{BASE}"]},
        "selections": {name: place[f"select/{name}"] for name in study.subsets},
        "rewrites": {node.name.removeprefix("rewrite/"): place[node.name] for node in nodes
                     if node.stage == "rewrite"},
        "judged": {node.name.removeprefix("judge/"): place[node.name] for node in nodes if node.stage == "judge"},
        "tokenized": {name: place[f"tokenize/{name}"] for name in study.sources},
        "conditions": {
            condition: {"seeds": {str(seed): {
                "run": place[f"run/{condition}/seed{seed}"],
                "export": place[f"export/{condition}/seed{seed}"],
                "evaluation": place[f"evaluate/{condition}/seed{seed}"],
            } for seed in study.seeds}}
            for condition in study.conditions
        },
        "along_training": {
            condition: {str(seed): _checkpoints(place, f"{condition}/seed{seed}") for seed in study.seeds}
            for condition in study.conditions
        },
        **({"trunk": place[f"run/{TRUNK}/seed{study.trunk.seed}"]} if study.trunk else {}),
        "held_out": {node.name.removeprefix("validate/"): place[node.name] for node in nodes
                     if node.kind == "held_out"},
        "comparison": place[comparison.name],
        "held_out_comparison": next((place[node.name] for node in nodes if node.kind == "held_out_comparison"), None),
        **{node.kind: place[node.name] for node in nodes if node.kind == "suite_comparison"},
        "registration": _registration(study, work),
        "missing": missing_conditions(asked, work),
        "notes": _notes(study, work, {name: place[f"tokenize/{name}"] for name in study.sources}),
        "parity": [verdict for node in nodes for verdict in _parity_verdicts(node, work)],
        "stages": [{"name": node.name, "seconds": seconds[node.name], "num_devices": num_devices(study, node)}
                   for node in nodes if node.name in seconds],
    }
    path = work / f"study-{study.slug}.json"
    write_json(path, redact(record))
    return path


def num_devices(study: StudyConfig, node: Node) -> int:
    """GPUs that a node's program holds: one a process, or those of an engine."""
    job = study.jobs.of(node.stage) if node.stage != FETCHED_HERE else None
    return max(node.processes, job.gpus if isinstance(job, GpuJob) else 1)


def _checkpoints(place: dict[str, str], run: str) -> dict[str, dict[str, str]]:
    """Iteration -> places of the export and evaluation of a checkpoint before the last."""
    prefix = f"evaluate/{run}/iter_"
    return {str(int(name.removeprefix(prefix))): {"export": place[name.replace("evaluate/", "export/", 1)],
                                                  "evaluation": place[name]}
            for name in place if name.startswith(prefix)}


def _registration(study: StudyConfig, work: Path) -> dict[str, Any]:
    """The hash of what the study asked at its first launch, its outcome, and what was edited since."""
    registered = register(study, work)
    return {"sha256": registered["sha256"], "primary": study.evaluation.primary, "edits": registered["edits"]}


def _notes(study: StudyConfig, work: Path, tokenized: dict[str, str]) -> list[str]:
    """What a reader must know before any number."""
    notes = [rewriter.note for rewriter in study.rewriters.values() if rewriter.note]
    if study.trunk:
        notes.append(f"All conditions leave one trunk after {study.trunk.tokens:,} tokens: they are not independent "
                     "runs. The spread between seeds is that of the branches given this trunk; it does not tell how "
                     "another trunk would have come out.")
    if study.evaluation.merge_last > 1:
        notes.append(f"Evaluated on the mean of the last {study.evaluation.merge_last} checkpoints of each run (of "
                     "their weights), in the place of the last one; curves along training end with it.")
    for condition, settings in study.conditions.items():
        empty = [name for name in settings.sources if is_finished(work / tokenized[name])
                 and not Artifact.open(work / tokenized[name]).counts["train"]["tokens"]]
        if empty:
            notes.append(f"Condition {condition!r} was to hold {', '.join(empty)}, of which no text survived.")
    return notes


def _parity_verdicts(node: Node, work: Path) -> list[dict[str, Any]]:
    """The proof that a conversion kept the logits, from the manifest of the node that made it."""
    if not is_finished(node.output(work)):
        return []
    counts = Artifact.open(node.output(work)).counts
    verdict = counts if node.kind == "parity" else counts.get("parity")
    return [{"name": node.name, **verdict}] if verdict else []
