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
from megatron_ext.model.hf_config import check_layout, read_architecture
from megatron_ext.processes import die_with_parent
from megatron_ext.progress import format_seconds
from megatron_ext.settings import validate
from megatron_ext.study.graph import Node
from megatron_ext.training.preflight import check_run

RECORD = "stages.json"


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
    made_from = _read_record(work).get(node.identity, {}).get("inputs")
    if not is_finished(output) or made_from is None:
        return False
    Artifact.open(output, kind=node.kind)
    for place, content_hash in _input_hashes(node, work).items():
        if made_from[place] != content_hash:
            raise UserError(f"{output} was made from other bytes than {work / place} now holds; delete {output} (and "
                            "what was made from it) to make it again")
    return True


def stage_seconds(work: Path) -> dict[str, float]:
    """Node name -> seconds its program ran, summed over interruptions."""
    return {entry["name"]: entry["seconds"] for entry in _read_record(work).values()}


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
    _record(node, work, seconds, succeeded=not code and is_finished(node.output(work)))
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
        check_layout(read_architecture(Path(values["model"])), validate(ParallelConfig, values["parallel"], node.name))


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


def _record(node: Node, work: Path, seconds: float, succeeded: bool) -> None:
    """Note how long the program has run and, when it succeeded, what its inputs held."""
    record = _read_record(work)
    before = record.get(node.identity, {}).get("seconds", 0.0)
    record[node.identity] = {"name": node.name, "seconds": round(before + seconds, 1)}
    if succeeded:
        record[node.identity]["inputs"] = _input_hashes(node, work)
    write_json(work / RECORD, record)


def _read_record(work: Path) -> dict[str, Any]:
    path = work / RECORD
    return json.loads(path.read_text()) if path.exists() else {}


def _input_hashes(node: Node, work: Path) -> dict[str, str]:
    """Place below `work` -> content hash, of each input that is an artifact (others are part of the identity)."""
    return {str(place.relative_to(work)): Artifact.open(place).content_hash
            for place in _input_folders(node, work) if (place / MANIFEST).exists() and place.is_relative_to(work)}


def _input_folders(node: Node, work: Path) -> list[Path]:
    folders = []
    values = node.config(work)
    for key in node.inputs:
        target: Any = values
        for part in key.split("."):
            target = target[part]
        folders += [Path(place) for place in (target if isinstance(target, list) else [target])]
    return folders
