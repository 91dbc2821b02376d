"""Run a study's graph on this machine: one program after the other, each in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from megatron_ext.artifacts import Artifact, is_finished, write_json
from megatron_ext.config import ParallelConfig, RunConfig
from megatron_ext.errors import UserError
from megatron_ext.files import read_json
from megatron_ext.lease import LEASE, lease
from megatron_ext.model.hf_config import check_layout, read_architecture
from megatron_ext.parts import parts_of
from megatron_ext.processes import die_with_parent
from megatron_ext.progress import format_seconds
from megatron_ext.redaction import redact_text
from megatron_ext.settings import validate
from megatron_ext.study.arms import RefusedArm, narrowed, refuse_pointless
from megatron_ext.study.logs import last_error
from megatron_ext.study.nodes import Node
from megatron_ext.training.preflight import check_run

RECORD = "stages.json"
TRAIN = "megatron_ext.train"


class StageError(UserError):
    """A stage's program failed; what is finished stays, and the same command goes on."""


@dataclass
class Outcome:
    """What running a graph came to."""

    num_run: int = 0
    nodes: list[Node] = field(default_factory=list)
    """The nodes that are finished, with the inputs that were there."""
    failures: dict[str, str] = field(default_factory=dict)
    """Name of a node whose program failed -> why."""
    refused: dict[str, str] = field(default_factory=dict)
    """Name of a run that would have shown nothing of its own -> why."""
    waiting: list[str] = field(default_factory=list)
    """Names of nodes whose inputs are not there."""

    def require_all(self) -> Outcome:
        """Raise StageError that tells every failure; returns the outcome itself where there is none."""
        if self.failures:
            told = "\n".join(f"  - {name}: {why}" for name, why in self.failures.items())
            left = f"\n  not run for want of them: {', '.join(self.waiting)}" if self.waiting else ""
            many = f"{len(self.failures)} stages failed" if len(self.failures) > 1 else "a stage failed"
            raise StageError(f"{many}; what is finished stays, and the same command goes on when it is mended:\n"
                             f"{told}{left}")
        return self


def run_nodes(nodes: list[Node], work: Path) -> Outcome:
    """Run what is not finished yet. A node that fails takes those that need it with it; the others go on."""
    work.mkdir(parents=True, exist_ok=True)
    outcome = Outcome()
    lost: set[str] = set()
    for number, asked in enumerate(nodes, start=1):
        title = f"[{number}/{len(nodes)}] {asked.name}"
        is_whole = all(parent.identity not in lost and is_finished(parent.output(work)) for parent in asked.parents)
        node = asked if is_whole else narrowed(asked, work)
        missing = [parent.name for parent in node.parents if parent.identity in lost] if node else [asked.name]
        if node is None or missing:
            print(f"{title}: not run, for want of {', '.join(missing)}", flush=True)
            outcome.waiting.append(asked.name)
            lost.add(asked.identity)
            continue
        try:
            with _one_at_a_time(node, work):
                outcome.num_run += _run_if_needed(node, nodes, work, title)
            outcome.nodes.append(node)
        except UserError as error:
            is_refused = isinstance(error, RefusedArm)
            print(f"{title}: {'refused' if is_refused else 'failed'}: {error}", flush=True)
            (outcome.refused if is_refused else outcome.failures)[asked.name] = str(error)
            lost.add(asked.identity)
    return outcome


def _run_if_needed(node: Node, nodes: list[Node], work: Path, title: str) -> bool:
    """Run a node that is not up to date; returns whether it was run."""
    if is_up_to_date(node, work):
        print(f"{title}: up to date", flush=True)
        return False
    print(f"{title}: {node.program}", flush=True)
    try:
        if node.program == TRAIN:
            refuse_pointless(node, nodes, work)
        check_node(node, work)
    except UserError as error:  # the state of a refused stage is its log, as that of a failed one
        with open(_log(node, work), "a", encoding="utf-8") as file:
            file.write(f"error: {error}\n")
        raise
    seconds = _run(node, work)
    print(f"{title}: done in {format_seconds(seconds)}", flush=True)
    return True


def report_node(record: Path) -> Node:
    """The stage that makes a study's page from its record."""
    return Node(f"report/{record.stem.removeprefix('study-')}", "report", "evaluation.report", {}, {"study": record})


def run_report(record: Path, work: Path) -> Path:
    """Make the study's page from its record; returns the report's folder."""
    node = report_node(record)
    with _one_at_a_time(node, work):
        if not is_up_to_date(node, work):
            _run(node, work)
    return node.output(work)


def _one_at_a_time(node: Node, work: Path) -> AbstractContextManager[None]:
    """Of several runners in one work folder one runs a stage; the others wait, and find it finished."""
    leases = work / "leases"
    leases.mkdir(parents=True, exist_ok=True)
    return lease(leases / node.label, node.output(work), wait=True)


def is_up_to_date(node: Node, work: Path) -> bool:
    """Whether the node's output is there, whole, and made from the inputs as they are now.

    Raises UserError when an input has other bytes than those that the output was made from. Only inputs of a kind that
    the manifest lists are compared: some stages read a model's tokenizer alone and note that.
    """
    output = node.output(work)
    if not is_finished(output):
        return False
    noted = Artifact.open(output, kind=node.kind).manifest["request"]["inputs"].values()
    made_from = {(one["kind"], one["content_hash"]) for one in noted}
    for place in input_folders(node, work):
        if not is_finished(place):
            continue  # a raw file, which is part of the node's identity, or one that was removed after its use
        now = Artifact.open(place)
        if now.kind in {kind for kind, _ in made_from} and (now.kind, now.content_hash) not in made_from:
            raise UserError(f"{output} was made from other bytes than {place} now holds; delete {output} (and what was "
                            "made from it) to make it again")
    return True


def stage_seconds(nodes: list[Node], work: Path) -> dict[str, float]:
    """Node name -> seconds its program ran: over all launches of run_study; else, by what it made, the last launch.

    Of a training run by its iterations; of an array the sum over its parts and the merge.
    """
    record = _read_record(work)
    return {node.name: record[node.identity]["seconds"] if node.identity in record else _seconds_noted(node, work)
            for node in nodes if is_finished(node.output(work))}


def seconds_run(node: Node, work: Path) -> float:
    """Seconds that a node's program has run, finished or not; of a training run by its iterations so far."""
    metrics = node.output(work) / "metrics.jsonl"
    if is_finished(node.output(work)):
        return stage_seconds([node], work)[node.name]
    if node.kind == "run":
        return _seconds_of_iterations(metrics) if metrics.exists() else 0.0
    return _read_record(work).get(node.identity, {}).get("seconds", 0.0)


def _seconds_noted(node: Node, work: Path) -> float:
    output = node.output(work)
    if node.kind == "run":
        return _seconds_of_iterations(output / "metrics.jsonl")
    made = [output, *(part for part in parts_of(output) if is_finished(part))]
    return sum(Artifact.open(folder).manifest["made_by"]["seconds"] for folder in made)


def _seconds_of_iterations(metrics: Path) -> float:
    """Sum over the iterations of a run, from the tokens so far and the tokens per second of each."""
    with open(metrics, encoding="utf-8") as file:
        whole = (line for line in file if line.endswith("\n"))  # one that is being written has no end yet
        rows = [row for row in map(json.loads, whole) if "tokens" in row]
    seconds, tokens_before = 0.0, _tokens_of_trunk(rows)
    for row in rows:
        if row["event"] == "train":
            seconds += (row["tokens"] - tokens_before) / row["tokens_per_second"]
        tokens_before = row["tokens"]
    return round(seconds, 1)


def _tokens_of_trunk(rows: list[dict[str, Any]]) -> float:
    """Tokens before the first iteration of a run: those of its trunk."""
    first = next((row for row in rows if row["event"] == "train"), None)
    return first["tokens"] * (1 - 1 / first.get("iteration", 1)) if first else 0.0


def write_config(node: Node, work: Path) -> Path:
    """Write the settings that the node's program is started with; returns the file."""
    config = config_file(node, work, node.identity)
    config.parent.mkdir(parents=True, exist_ok=True)
    write_json(config, node.config(work), private=True)  # keys of servers may be among them
    return config


def config_file(node: Node, work: Path, identity: str) -> Path:
    """Where the settings are kept that a node of this name and identity was started with."""
    return work / "configs" / f"{node.name.replace('/', '.')}-{identity[:8]}.json"


def program_arguments(node: Node, work: Path, config: Path) -> list[str]:
    """What the node's program is given."""
    output = node.output(work)
    place = [f"output={output}"] if node.program == TRAIN else ["--output", str(output)]
    return ["--config", str(config), *place]


def check_node(node: Node, work: Path) -> None:
    """Find mistakes before processes are started: one process can tell them in one line, many cannot."""
    values = node.config(work)
    if node.program == TRAIN:
        check_run(validate(RunConfig, values | {"output": str(node.output(work))}, where=node.name), node.processes)
    elif node.kind == "parity":
        check_layout(read_architecture(Path(values["model"])), validate(ParallelConfig, values["parallel"], node.name))


def _log(node: Node, work: Path) -> Path:
    log = work / "logs" / f"{node.label}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    return log


def _run(node: Node, work: Path) -> float:
    config = write_config(node, work)
    log = _log(node, work)
    started = time.monotonic()
    num_threads = max(1, len(os.sched_getaffinity(0)) // node.processes)
    code = _stream(_command(node, work, config), log, num_threads)
    seconds = time.monotonic() - started
    _record(node, work, seconds)
    if code:
        raise StageError(f"{last_error(log).removeprefix('error: ')} (exit code {code}; its output is above and in "
                         f"{log})")
    if not is_finished(node.output(work)):
        raise StageError("stopped before it was finished; run the same command again to go on")
    return seconds


def _command(node: Node, work: Path, config: Path) -> list[str]:
    program = ["-m", node.program, *program_arguments(node, work, config)]
    if node.processes == 1:
        return [sys.executable, *program]
    return [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(node.processes),
            *program]


def _stream(command: list[str], log: Path, num_threads: int) -> int:
    """Run a command with so many threads a process; its output goes to the console, indented, and to a log.

    Returns the exit code.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": str(num_threads)}
    with open(log, "a", encoding="utf-8") as file, subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment,
        preexec_fn=die_with_parent,
    ) as process:
        assert process.stdout is not None
        try:
            _copy(process.stdout, file)
        except KeyboardInterrupt:  # the program has got it, too
            print("interrupted: waiting for the stage to save and leave; Ctrl-C again ends it at once", flush=True)
            _copy(process.stdout, file)
            process.wait()
            raise
        return process.wait()


def _copy(lines: Iterable[str], log: TextIO) -> None:
    for line in map(redact_text, lines):
        log.write(line)
        log.flush()
        print(f"    {line}", end="", flush=True)


def _record(node: Node, work: Path, seconds: float) -> None:
    """Add to the seconds that the node's program has run."""
    with lease(work / LEASE, work / RECORD, wait=True):
        _add_seconds(node, work, seconds)


def _add_seconds(node: Node, work: Path, seconds: float) -> None:
    record = _read_record(work)
    before = record.get(node.identity, {}).get("seconds", 0.0)
    record[node.identity] = {"name": node.name, "seconds": round(before + seconds, 1)}
    write_json(work / RECORD, record)


def _read_record(work: Path) -> dict[str, Any]:
    try:
        return read_json(work / RECORD) or {}
    except UserError:  # only the seconds of earlier launches are lost
        return {}


def input_folders(node: Node, work: Path) -> list[Path]:
    """Everything that the node reads."""
    folders = []
    values = node.config(work)
    for key in node.inputs:
        target: Any = values
        for part in key.split("."):
            target = target[part]
        folders += [Path(place) for place in (target if isinstance(target, list) else [target])]
    return folders
