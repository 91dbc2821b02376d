"""Run a study's graph on this machine: one program after the other, each in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from megatron_ext.artifacts import MANIFEST, Artifact, is_finished, write_json
from megatron_ext.config import ParallelConfig, RunConfig
from megatron_ext.errors import UserError
from megatron_ext.processes import die_with_parent
from megatron_ext.progress import format_seconds
from megatron_ext.settings import validate
from megatron_ext.study.graph import Node
from megatron_ext.training.preflight import check_layout, check_run

TIMES = "stage_seconds.json"


class StageError(UserError):
    """A stage's program failed; what is finished stays, and the same command goes on."""


def run_nodes(nodes: list[Node], work: Path) -> int:
    """Run what is not finished yet; returns how many nodes had to run.

    Raises StageError at the first program that fails.
    """
    work.mkdir(parents=True, exist_ok=True)
    num_run = 0
    for number, node in enumerate(nodes, start=1):
        title = f"[{number}/{len(nodes)}] {node.name}"
        if is_up_to_date(node, work):
            print(f"{title}: up to date", flush=True)
            continue
        print(f"{title}: {node.program}", flush=True)
        seconds = _run(node, work)
        print(f"{title}: done in {format_seconds(seconds)}", flush=True)
        num_run += 1
    return num_run


def run_report(record: Path, work: Path) -> Path:
    """Make the study's page from its record; returns the report's folder."""
    node = Node("report/page", "report", "evaluation.report", {}, {"study": record})
    output = node.output(work)
    if not is_up_to_date(node, work):
        _run(node, work)
    return output


def is_up_to_date(node: Node, work: Path) -> bool:
    """Whether the node's output is there, whole, and made from the inputs as they are now."""
    output = node.output(work)
    if not is_finished(output):
        return False
    artifact = Artifact.open(output, kind=node.kind)
    known = {entry["content_hash"] for entry in artifact.manifest["request"]["inputs"].values()}
    for place in _input_folders(node, work):
        if (place / MANIFEST).exists() and Artifact.open(place).content_hash not in known:
            raise UserError(f"{output} was made from other bytes than {place} now holds; delete {output} (and what was "
                            "made from it) to make it again")
    return True


def stage_seconds(work: Path) -> dict[str, float]:
    """Node name -> seconds its program ran, summed over interruptions."""
    path = work / TIMES
    return json.loads(path.read_text()) if path.exists() else {}


def _run(node: Node, work: Path) -> float:
    _check(node, work)
    config = work / "configs" / f"{node.name.replace('/', '.')}.json"
    config.parent.mkdir(exist_ok=True)
    write_json(config, node.config(work))
    log = work / "logs" / f"{node.name.replace('/', '.')}.log"
    log.parent.mkdir(exist_ok=True)
    started = time.monotonic()
    num_threads = max(1, len(os.sched_getaffinity(0)) // node.processes)
    code = _stream(_command(node, config, node.output(work)), log, num_threads)
    seconds = time.monotonic() - started
    times = stage_seconds(work)
    write_json(work / TIMES, times | {node.name: round(times.get(node.name, 0.0) + seconds, 1)})
    if code:
        raise StageError(f"stage {node.name} failed (exit code {code}): its output is above and in {log}. What is "
                         "finished stays; run the same command again when it is mended")
    if not is_finished(node.output(work)):
        raise StageError(f"stage {node.name} stopped before it was finished; run the same command again to go on")
    return seconds


def _check(node: Node, work: Path) -> None:
    """Find mistakes before processes are started: one process can tell them in one line, many cannot."""
    values = node.config(work)
    if node.program == "megatron_ext.train":
        check_run(validate(RunConfig, values | {"output": "."}, where=node.name), node.processes)
    elif node.kind == "parity":
        check_layout(validate(ParallelConfig, values["parallel"], where=node.name), Path(values["model"]))


def _command(node: Node, config: Path, output: Path) -> list[str]:
    place = [f"output={output}"] if node.program == "megatron_ext.train" else ["--output", str(output)]
    program = ["-m", node.program, "--config", str(config), *place]
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
        for line in process.stdout:
            file.write(line)
            file.flush()
            print(f"    {line}", end="", flush=True)
        return process.wait()


def _input_folders(node: Node, work: Path) -> list[Path]:
    folders = []
    values = node.config(work)
    for key in node.inputs:
        target: Any = values
        for part in key.split("."):
            target = target[part]
        folders += [Path(place) for place in (target if isinstance(target, list) else [target])]
    return folders
