"""What gpu_check.py works with: the machine, runs of the real programs, and what their checkpoints hold."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.measuring import describe_machine
from benchmarks.train import prepare, run_peer_apart, run_trainer, table
from megatron_ext.artifacts import is_finished, write_json
from megatron_ext.config import RunConfig
from megatron_ext.data.model_folder import ModelSettings, fetch_model
from megatron_ext.model.checkpoint_reader import CheckpointReader
from megatron_ext.model.hf_config import read_architecture
from megatron_ext.model.hf_import import write_megatron_checkpoint
from megatron_ext.settings import overlay, validate
from megatron_ext.training.memory import GIB, estimate_memory

_CORPUS = Path(__file__).parents[1] / "examples" / "quickstart" / "corpus"
_OPTIMIZER = "optimizer.state.param."


class CheckFailed(RuntimeError):
    """What should be so is not; the text says what is."""


@dataclass(frozen=True)
class Size:
    """How much is done."""

    iterations: int
    seq_length: int
    global_batch_size: int
    micro_batch_size: int
    max_processes: int
    parity_positions: int
    shapes: tuple[str, ...]
    """Of benchmarks/train.py."""
    shape_iterations: int
    rewritten_documents: int


SIZES = {
    "full": Size(20, 512, 16, 2, 8, 512, ("1.1b", "7b_layers"), 12, 100),
    "tiny": Size(4, 32, 4, 2, 2, 64, ("tiny",), 5, 2),
}


class Lab:
    """A model, some Portuguese text in its tokens, and runs on them."""

    def __init__(self, work: Path, size: Size, layers: str, model: str) -> None:
        self.work, self.size, self.layers = work.resolve(), size, layers
        self.num_processes = min(2 ** (max(num_gpus(), 1).bit_length() - 1) if num_gpus() else 2, size.max_processes)
        self.model = fetch_model(ModelSettings(model=model), self.work / "model").path
        self._tokens = self.work / "tokens"
        run_program("tools.tokenize_corpus", ["--output", str(self._tokens), f"documents={_CORPUS}",
                                              f"tokenizer={self.model}"])

    def train(self, name: str, num_processes: int | None = None, deterministic: bool = False,
              **sections: dict[str, Any]) -> list[dict[str, Any]]:
        """Run, or go on with, a training run; returns its metrics of every iteration.

        Args:
            deterministic: without attention kernels that add up in any order.
            sections: settings that differ.
        """
        write_json(self.work / f"{name}.json", overlay(self._settings(name), sections))
        environment = {"NVTE_ALLOW_NONDETERMINISTIC_ALGO": "0"} if deterministic else {}
        if not is_finished(self.work / name):
            run_program("megatron_ext.train", ["--config", str(self.work / f"{name}.json")],
                        num_processes or self.num_processes, environment=environment)
        rows = [json.loads(line) for line in (self.work / name / "metrics.jsonl").read_text().splitlines()]
        return [row for row in rows if row["event"] == "train"]

    def last_checkpoint(self, name: str) -> Path:
        """Of a run."""
        return max((self.work / name / "checkpoints").glob("iter_*"))

    def _settings(self, name: str) -> dict[str, Any]:
        size = self.size
        return {
            "output": str(self.work / name),
            "model": {"hf_folder": str(self.model), "layer_implementation": self.layers},
            "data": {"seq_length": size.seq_length,
                     "sources": {"text": {"path": str(self._tokens), "fill": True, "max_epochs": 1000}}},
            "train": {"budget_tokens": size.iterations * size.global_batch_size * size.seq_length,
                      "global_batch_size": size.global_batch_size, "micro_batch_size": size.micro_batch_size},
            "optimizer": {"lr": 1e-4, "min_lr": 1e-4},
            "schedule": {"style": "constant", "warmup_iters": 1},
            "parallel": {"overlap_grad_reduce": True, "overlap_param_gather": True},
        }


def run_program(module: str, arguments: list[str], num_processes: int = 1, python: str = sys.executable,
                environment: dict[str, str] | None = None) -> str:
    """What the program prints. Raises CheckFailed with the end of it when the program fails."""
    launcher = [] if num_processes == 1 else ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
                                              str(num_processes)]
    result = subprocess.run([python, *launcher, "-m", module, *arguments], capture_output=True, text=True, check=False,
                            env={**os.environ, **(environment or {})})
    if result.returncode:
        raise CheckFailed("\n".join([f"{module} {' '.join(arguments)}: exit code {result.returncode}",
                                     *result.stdout.splitlines()[-10:], *result.stderr.splitlines()[-30:]]))
    return result.stdout


@cache
def _gpus() -> list[list[str]]:
    """Name, compute capability, memory and driver of every NVIDIA GPU."""
    query = ["nvidia-smi", "--query-gpu=name,compute_cap,memory.total,driver_version", "--format=csv,noheader"]
    try:
        told = subprocess.run(query, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    return [[field.strip() for field in line.split(",")] for line in told.splitlines()]


def num_gpus() -> int:
    """NVIDIA GPUs of this machine."""
    return len(_gpus())


def has_fp8() -> bool:
    """Whether the GPUs multiply in fp8: from compute capability 8.9 on."""
    return bool(_gpus()) and float(_gpus()[0][1]) >= 8.9


def describe_gpus() -> str:
    """The machine in words."""
    if not _gpus():
        return f"No GPU: {describe_machine()}"
    name, _, memory, driver = _gpus()[0]
    return f"{num_gpus()} x {name}, {memory}, driver {driver}; {describe_machine()}"


def count_not_the_optimizers(checkpoint: Path) -> tuple[int, int]:
    """Weights of a checkpoint that are not the optimizer's float32 ones rounded to their type; and all weights."""
    reader = CheckpointReader(checkpoint)
    differing = total = 0
    for name, layer in _tensors(reader):
        saved, main = reader.read(name, layer), reader.read(_OPTIMIZER + name, layer)
        differing += int((saved != main.to(saved.dtype)).sum())
        total += saved.numel()
    return differing, total


def distance(one: Path, other: Path, base: Path) -> float:
    """How far the weights of two checkpoints are apart, as a share of how far the second is from the base model."""
    start = one.parent / "base"
    start.mkdir(exist_ok=True)
    write_megatron_checkpoint(base, start)
    readers = [CheckpointReader(folder) for folder in (one, other, start)]
    apart = moved = 0.0
    for name, layer in _tensors(readers[0]):
        ours, theirs, before = (reader.read(name, layer).float() for reader in readers)
        apart += _squared_distance(ours, theirs)
        moved += _squared_distance(before, theirs)
    return (apart / moved) ** 0.5


def _squared_distance(one: Tensor, other: Tensor) -> float:
    rows = min(len(one), len(other))  # embeddings are padded by layout
    return float((one[:rows] - other[:rows]).double().pow(2).sum())


def _tensors(reader: CheckpointReader) -> Iterator[tuple[str, int | None]]:
    for name in sorted(reader.names()):
        num_layers = reader.num_layers(name)
        yield from ((name, layer) for layer in ([None] if num_layers is None else range(num_layers)))


def speed_of(lab: Lab, shape: str) -> list[str]:
    """The table of benchmarks/train.py for a shape, in one turn, and the memory that the dry run would have told."""
    work = prepare(lab.work / shape, shape, lab.size.shape_iterations, lab.layers)
    ours, theirs = run_trainer(work, 0), run_peer_apart(work, lab.size.shape_iterations)
    config = validate(RunConfig, json.loads((work / "run.json").read_text()), where=shape)
    memory = estimate_memory(config, read_architecture(work / "model"), dp=1)
    measured = f"{ours['peak_memory_gib']:.1f} GiB" if torch.cuda.is_available() else "not measured on a CPU"
    return [*table(shape, work, [ours], [theirs]), "",
            f"Memory: estimated {memory.total / GIB:.1f} GiB, of which an allowance of "
            f"{(memory.total - memory.counted) / GIB:.1f}; measured peak {measured}."]
