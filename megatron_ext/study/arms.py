"""What of a study is there, what is not and why: a failed or refused arm is a state that all who ask find on disk.

The artifacts and the logs in the work folder are that state, so the runner on one machine, Slurm's jobs, the comparison
and the page tell the same. The comparison is made of the conditions that were evaluated, under a name of its own, and
made again when more of them are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from megatron_ext.artifacts import is_finished
from megatron_ext.config import RunConfig
from megatron_ext.errors import UserError
from megatron_ext.settings import validate
from megatron_ext.study.logs import last_error
from megatron_ext.study.nodes import Input, Inside, Node
from megatron_ext.training.preflight import source_sizes
from megatron_ext.training.run_folder import run_identity
from megatron_ext.training.trunk import plan_run

_EVALUATIONS, _ALONG = "evaluations", "along_training"
_COMPARED = {"comparison": _EVALUATIONS, "held_out_comparison": "held_out", "suite_comparison": _EVALUATIONS}
"""Kind of a comparison -> its input that holds what was measured of each condition."""
_NEEDED = ("model", "checkpoint")
"""Inputs without which there is nothing to measure."""
_TEXTS = {"held_out": "sources.", "overlap": "training."}
"""Kind of what takes any number of texts -> where the texts are without which it makes no sense."""


def is_done(node: Node, work: Path) -> bool:
    """Whether a node's artifact is there."""
    return is_finished(node.output(work))


def narrowed(node: Node, work: Path) -> Node | None:
    """The node with the inputs that are there: of a comparison the conditions, of what reads held-out text the texts.

    None where what is left makes no sense; any other node is returned as it is.
    """
    if node.kind not in (*_TEXTS, *_COMPARED):
        return node
    inputs = {key: there for key, value in node.inputs.items()
              if (there := value if key in _NEEDED else _there(value, work))}
    if inputs == node.inputs:
        return node
    if node.kind in _TEXTS:
        return replace(node, inputs=inputs) if any(key.startswith(_TEXTS[node.kind]) for key in inputs) else None
    return _comparison_of(node, inputs)


def missing_conditions(node: Node, work: Path) -> dict[str, str]:
    """Condition -> why it is not (with all its seeds) in the comparison that the node asks for."""
    missing: dict[str, str] = {}
    section = _COMPARED[node.kind]
    for key, value in node.inputs.items():
        if key.startswith(f"{section}.") and isinstance(value, list):
            for measured in value:
                if not is_done(measured, work):
                    missing.setdefault(key.removeprefix(f"{section}."), why_unfinished(measured, work))
    return missing


def why_unfinished(node: Node, work: Path) -> str:
    """The stage at fault, which may be an earlier one, and the last error of its log."""
    unfinished = next((parent for parent in node.parents if not is_done(parent, work)), None)
    if unfinished is not None:
        return why_unfinished(unfinished, work)
    logs = sorted((work / "logs").glob(f"{node.label}*.log"), key=lambda log: log.stat().st_mtime)
    return f"{node.name}: {last_error(logs[-1])}" if logs else f"{node.name} has not run"


class RefusedArm(UserError):
    """A condition that cannot show what it is for; the others go on without it."""


def refuse_pointless(run: Node, nodes: Sequence[Node], work: Path) -> None:
    """Raise RefusedArm when a source of a run has nothing to show, or another run with its seed shows the same text.

    Args:
        nodes: of the study, in order: of two equal runs the first one trains.
    """
    config = _config(run, work)
    sizes = source_sizes(config)
    empty = [name for name, tokens in sizes.items() if not tokens]
    if not empty:
        with suppress(UserError):  # amounts that cannot be had are a failure, told when the run is checked
            empty = [source.name for source in plan_run(config, sizes).sources if not source.num_samples]
    if empty:
        raise RefusedArm(f"it would see nothing of {', '.join(empty)} (no text was left, or the amount is below one "
                         "sample): not trained, for it would be a copy of what its other sources make")
    mine = _shown(config)
    for other in nodes[:nodes.index(run)]:
        if other.stage == "run" and _inputs_are_there(other, work) and _shown(_config(other, work)) == mine:
            raise RefusedArm(f"it would see the same text as {other.name}: not trained, for it could not differ")


def _there(value: Input, work: Path) -> Input | None:
    if isinstance(value, list):
        measured = [narrowed(one, work) for one in value]
        return [one for one in measured if one is not None and is_done(one, work)]
    if isinstance(value, Node):
        there = narrowed(value, work)
        return there if there is not None and is_done(there, work) else None
    if isinstance(value, Inside):
        return value if is_done(value.node, work) else None
    return value


def _comparison_of(node: Node, inputs: dict[str, Input]) -> Node | None:
    """The comparison of the conditions that are left; of none, or without the baseline, there is none."""
    there, asked = (_num_measured(some, _COMPARED[node.kind]) for some in (inputs, node.inputs))
    if node.settings["baseline"] not in there or len(there) < 2:
        return None
    inputs = {key: value for key, value in inputs.items()
              if not key.startswith(f"{_ALONG}.") or key.split(".")[1] in there}
    missing = [name if name not in there else f"{name} ({there[name]} of {number} seeds)"
               for name, number in asked.items() if there.get(name) != number]
    interactions = {name: conditions for name, conditions in node.settings["interactions"].items()
                    if set(conditions) <= there.keys()}
    return replace(node, inputs=inputs, settings={**node.settings, "interactions": interactions, "missing": missing})


def _num_measured(inputs: Mapping[str, Input], section: str) -> dict[str, int]:
    """Condition -> number of its evaluations, or measurements."""
    return {key.removeprefix(f"{section}."): len(value) for key, value in inputs.items()
            if key.startswith(f"{section}.") and isinstance(value, list)}


def _inputs_are_there(node: Node, work: Path) -> bool:
    return all(is_done(parent, work) for parent in node.parents)


def _config(run: Node, work: Path) -> RunConfig:
    return validate(RunConfig, run.config(work) | {"output": "."}, where=run.name)


def _shown(config: RunConfig) -> list[Any]:
    """How much of which bytes a run sees, whatever its sources are called, and all else that decides it."""
    identity = run_identity(config)
    return [sorted(map(str, identity["data"].pop("sources").values())), identity]
