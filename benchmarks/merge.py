"""Merging five checkpoints against reading the same bytes, in one run, taking turns.

    python -m benchmarks.merge --work /scratch > benchmarks/merge.md

The checkpoints have TinyLlama 1.1B's shape and random bfloat16 weights. Contestants, each turn a process of its own:
reading the five files to their ends, nothing else; the merge, with its output flushed to the disk. All input is written
through and dropped from the page cache before each turn. Peak memory counts the pages of mapped files as well; "above
start" is without what the imported libraries take. CPU seconds, of all threads and the kernel, tell on a busy machine
too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.convert import CONFIG, flush, machine, make_model, memory_mib

NUM_PARENTS = 5
_BUFFER_BYTES = 16 * 2**20


def main() -> None:
    """Make the checkpoints, take turns, print."""
    arguments = _parse_arguments()
    if arguments.turn:
        print(json.dumps(_take_turn(arguments.turn, arguments.work)))
        return
    with tempfile.TemporaryDirectory(dir=arguments.work) as work:
        size = _make_parents(Path(work), arguments.layers)
        turns = [_run_turn(name, work) for _ in range(arguments.repetitions) for name in CONTESTANTS]
    best = {name: min((turn for turn in turns if turn["name"] == name), key=lambda turn: turn["seconds"])
            for name in CONTESTANTS}
    print(_table(best, size, arguments.repetitions))


def _read(parents: list[Path], output: Path) -> Callable[[], None]:
    buffer = bytearray(_BUFFER_BYTES)

    def run() -> None:
        for parent in parents:
            with open(parent / "__0_0.distcp", "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    return run


def _merge(parents: list[Path], output: Path) -> Callable[[], None]:
    from megatron_ext.model.merge import write_merged

    def run() -> None:
        output.mkdir()
        write_merged(parents, output)
        for file in filter(Path.is_file, output.rglob("*")):
            flush(file)

    return run


CONTESTANTS: dict[str, Callable[[list[Path], Path], Callable[[], None]]] = {"read": _read, "merge": _merge}


def _make_parents(work: Path, num_layers: int) -> int:
    """Five copies of a checkpoint as files of their own; returns their bytes."""
    from megatron_ext.model.hf_import import write_megatron_checkpoint

    make_model(work / "model", num_layers)
    first, *others = _parents(work)
    first.mkdir()
    write_megatron_checkpoint(work / "model", first)
    shutil.rmtree(work / "model")
    for other in others:
        shutil.copytree(first, other)
    return NUM_PARENTS * (first / "__0_0.distcp").stat().st_size


def _parents(work: Path) -> list[Path]:
    return [work / f"parent{number}" for number in range(NUM_PARENTS)]


def _run_turn(name: str, work: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.merge", "--turn", name, "--work", work]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    shutil.rmtree(Path(work) / "output", ignore_errors=True)
    turn = json.loads(result.stdout.splitlines()[-1])
    print(turn, file=sys.stderr, flush=True)
    return turn


def _take_turn(name: str, work: Path) -> dict[str, Any]:
    run = CONTESTANTS[name](_parents(work), work / "output")
    for file in work.glob("parent*/*.distcp"):
        flush(file)
        with open(file, "rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    at_start, cpu_before, started = memory_mib("VmRSS"), time.process_time(), time.perf_counter()
    run()
    return {"name": name, "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - cpu_before, "peak_mib": memory_mib("VmHWM"),
            "start_mib": at_start}


def _table(best: dict[str, dict[str, Any]], size: int, repetitions: int) -> str:
    largest = 2 * CONFIG["vocab_size"] * CONFIG["hidden_size"] / 2**20
    told = f"The best of {repetitions} turns; `python -m benchmarks.merge --help` says what is measured."
    lines = [f"# Merging five checkpoints, {size / 1e9:.2f} GB that lie on the disk", "",
             f"{machine()}. {told} "
             f"The largest tensor has {largest:.0f} MiB.", "",
             "|  | seconds | MB/s read | reading time / time | CPU seconds | above start, MiB | in largest tensors |",
             "|---|---:|---:|---:|---:|---:|---:|"]
    for name, turn in best.items():
        above = turn["peak_mib"] - turn["start_mib"]
        speeds = (f"{turn['seconds']:.1f} | {size / 1e6 / turn['seconds']:.0f} | "
                  f"{best['read']['seconds'] / turn['seconds']:.2f} | {turn['cpu_seconds']:.1f}")
        lines.append(f"| {name} | {speeds} | {above:.0f} | {above / largest:.1f} |")
    return "\n".join(lines) + "\n"


def _parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path.cwd(), help="folder on the disk to measure")
    parser.add_argument("--layers", type=int, default=CONFIG["num_hidden_layers"], help="of the model")
    parser.add_argument("--repetitions", type=int, default=3, help="turns of each")
    parser.add_argument("--turn", choices=CONTESTANTS, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
