"""A tiny training run, and the job that trains it: something to disturb."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from tests.cpu.tiny import make_model, make_tokenized
from tests.slurm.cluster import ROOT, Cluster

ITERATIONS = 400
CHECKPOINT_ITERATIONS = 100
TOKENS = 4 * 32  # of an iteration


class TinyRuns:
    """Runs of one tiny Llama on one tiny data set; all have the same losses."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._model = make_model(folder / "model")
        self._data = make_tokenized(folder / "data", seed=0, num_documents=200)

    def config(self, name: str, has_checkpoints: bool = True) -> Path:
        """The configuration file of a run; its folder is `folder / name`."""
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump({
            "output": str(self.folder / name),
            "model": {"hf_folder": str(self._model), "dtype": "float32"},
            "data": {"seq_length": 32, "sources": {"a": {"path": str(self._data), "fill": True, "max_epochs": 100}}},
            "train": {"budget_tokens": ITERATIONS * TOKENS, "global_batch_size": 4},
            "optimizer": {"lr": 3e-3, "min_lr": 3e-4},
            "checkpoint": {"interval_tokens": CHECKPOINT_ITERATIONS * TOKENS if has_checkpoints else None},
            "parallel": {"pipeline_model_parallel_size": 2},
        }))
        return path

    def losses(self, name: str) -> list[float]:
        """The loss of each iteration of a finished run."""
        assert (self.folder / name / "manifest.json").exists(), f"run {name} is not finished"
        rows = map(json.loads, (self.folder / name / "metrics.jsonl").read_text().splitlines())
        return [row["loss"] for row in rows if row["event"] == "train"]

    def train_here(self, name: str) -> list[float]:
        """Train without Slurm: torchrun, two processes of this machine."""
        done = subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
             "-m", "megatron_ext.train", "--config", str(self.config(name))],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout + done.stderr
        return self.losses(name)


class TrainingJob:
    """slurm/train.sbatch at work on a tiny run, over two nodes."""

    def __init__(self, cluster: Cluster, runs: TinyRuns, name: str, *overrides: str, has_checkpoints: bool = True,
                 num_gpus: int = 0, **environment: object) -> None:
        self._cluster, self._runs, self._name = cluster, runs, name
        self.folder = runs.folder / name
        self.id = cluster.submit("--nodes=2", f"--gpus-per-node={num_gpus}", "slurm/train.sbatch",
                                 runs.config(name, has_checkpoints), *overrides, **environment)

    @property
    def log(self) -> str:
        """What all starts of the job have printed."""
        path = self._cluster.log(self.id)
        return path.read_text() if path.exists() else ""

    @property
    def num_restarts(self) -> int:
        """How often it was requeued."""
        return int(self._cluster.show(self.id)["Restarts"])

    @property
    def exit_code(self) -> int:
        """Of the script, in its last start."""
        return int(self._cluster.show(self.id)["ExitCode"].split(":")[0])

    @property
    def nodes(self) -> list[str]:
        """Those it runs on."""
        names = self._cluster.show(self.id)["NodeList"]
        return self._cluster.run("scontrol", "show", "hostnames", names).stdout.split()

    def losses(self) -> list[float]:
        """The losses of the run once the job has ended."""
        state = self._cluster.wait(self.id, timeout_seconds=300)
        assert state == "COMPLETED", f"{state}\n{self.log}"
        return self._runs.losses(self._name)

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Wait; a failure shows the log."""
        self._cluster.wait_until(condition, self.id)

    def wait_for_log(self, text: str) -> None:
        """Wait until the job has printed a text."""
        self.wait_until(lambda: text in self.log)

    def wait_for_progress(self) -> None:
        """Wait until some iterations lie behind the first checkpoint."""
        metrics = self.folder / "metrics.jsonl"
        wanted = f'"iteration": {CHECKPOINT_ITERATIONS + 10},'
        self.wait_until(lambda: metrics.exists() and wanted in metrics.read_text())

    def signal_workers(self, name: str) -> None:
        """Send a signal to the training processes, not to torchrun."""
        pattern = f"^[^ ]*python[^ ]* -u -m megatron_ext.train .*/{self._name}.yaml"
        self._cluster.run("pkill", f"-{name}", "-f", pattern, check=False)  # sees the cluster's processes alone

    @contextmanager
    def frozen_workers(self) -> Iterator[None]:
        """Time stands still for the training, so that something slow can happen in its midst."""
        self.signal_workers("STOP")
        try:
            yield
        finally:
            self.signal_workers("CONT")
