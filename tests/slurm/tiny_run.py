"""A tiny training run whose progress and losses can be read, to submit as a job or to start with torchrun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from tests.cpu.tiny import make_model, make_tokenized
from tests.slurm.cluster import ROOT

ITERATIONS = 300
CHECKPOINT_ITERATIONS = 50
TOKENS = 4 * 32  # of an iteration


class TinyRuns:
    """Runs of one tiny Llama on one tiny data set; all have the same losses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._model = make_model(folder / "model")
        self._data = make_tokenized(folder / "data", seed=0, num_documents=200)

    def config(self, name: str, **train: Any) -> Path:
        """The configuration file of a run; its folder is `folder / name`."""
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({
            "output": str(self.folder / name),
            "model": {"hf_folder": str(self._model), "dtype": "float32"},
            "data": {"seq_length": 32, "sources": {"a": {"path": str(self._data), "fill": True, "max_epochs": 100}}},
            "train": {"budget_tokens": ITERATIONS * TOKENS, "global_batch_size": 4, **train},
            "optimizer": {"lr": 3e-3, "min_lr": 3e-4},
            "checkpoint": {"interval_tokens": CHECKPOINT_ITERATIONS * TOKENS},
            "parallel": {"pipeline_model_parallel_size": 2},
        }))
        return path

    def losses(self, name: str) -> list[float]:
        """The loss of each iteration so far."""
        path = self.folder / name / "metrics.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        return [row["loss"] for row in rows if row["event"] == "train"]

    def iteration(self, name: str) -> int:
        """How many iterations the metrics of a run tell of."""
        path = self.folder / name / "metrics.jsonl"
        return path.read_text().count('"event": "train"') if path.exists() else 0

    def start_here(self, name: str) -> subprocess.Popen:
        """Start a run without Slurm: torchrun, two processes of this machine."""
        return subprocess.Popen(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
             "-m", "megatron_ext.train", "--config", str(self.config(name))],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True)
