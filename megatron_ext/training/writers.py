"""Where a run's metrics go: always metrics.jsonl and the console; TensorBoard, W&B and MLflow when asked."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from megatron_ext.artifacts import write_text
from megatron_ext.config import RunConfig
from megatron_ext.progress import format_seconds

METRICS = "metrics.jsonl"
DROPPED = "metrics-dropped.jsonl"


class MetricsWriter:
    """Appends one JSON line an event. After a restart, lines of iterations that will be run again go to a file of their
    own."""

    def __init__(self, config: RunConfig, iteration: int) -> None:
        self._path = config.output / METRICS
        _drop_after(self._path, iteration)
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115  (open as long as the run)
        self._trackers = open_trackers(config, iteration)

    def write(self, event: str, iteration: int, values: Mapping[str, Any]) -> None:
        """Record an event of an iteration (1-based; 0 is before the first)."""
        self._file.write(json.dumps({"event": event, "iteration": iteration, **values}) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        scalars = dict(_flatten(values, event)) if self._trackers else {}
        for tracker in self._trackers:
            tracker.log(scalars, iteration)

    def close(self) -> None:
        """Flush and close."""
        self._file.close()
        for tracker in self._trackers:
            tracker.close()


class Tracker(Protocol):
    """A service that shows scalars over iterations."""

    def log(self, scalars: Mapping[str, float], iteration: int) -> None:
        """Record scalars of an iteration, by name such as `train/loss`."""

    def close(self) -> None:
        """Send what is not sent yet."""


def open_trackers(config: RunConfig, iteration: int) -> list[Tracker]:
    """The trackers that the configuration asks for; a resumed run goes on in the one it began."""
    trackers: list[Tracker] = []
    if config.logging.tensorboard:
        trackers.append(_TensorBoard(config, iteration))
    if config.logging.wandb_project:
        trackers.append(_WeightsAndBiases(config))
    if config.logging.mlflow_experiment:
        trackers.append(_MLflow(config))
    return trackers


class _TensorBoard:
    def __init__(self, config: RunConfig, iteration: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(config.output / "tensorboard"), purge_step=iteration + 1)

    def log(self, scalars: Mapping[str, float], iteration: int) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, iteration)

    def close(self) -> None:
        self._writer.close()


class _WeightsAndBiases:
    def __init__(self, config: RunConfig) -> None:
        import wandb

        self._run = wandb.init(project=config.logging.wandb_project, name=config.output.name, id=_run_id(config),
                               resume="allow", dir=config.output.parent, config=config.model_dump(mode="json"))

    def log(self, scalars: Mapping[str, float], iteration: int) -> None:
        self._run.log(dict(scalars), step=iteration)

    def close(self) -> None:
        self._run.finish()


class _MLflow:
    def __init__(self, config: RunConfig) -> None:
        import mlflow

        self._mlflow = mlflow
        experiment = mlflow.set_experiment(config.logging.mlflow_experiment).experiment_id
        known = mlflow.search_runs([experiment], f"tags.run_id = '{_run_id(config)}'", output_format="list")
        mlflow.start_run(known[0].info.run_id if known else None, experiment_id=experiment,
                         run_name=config.output.name, tags={"run_id": _run_id(config)})

    def log(self, scalars: Mapping[str, float], iteration: int) -> None:
        self._mlflow.log_metrics(dict(scalars), step=iteration)

    def close(self) -> None:
        self._mlflow.end_run()


def _run_id(config: RunConfig) -> str:
    """The same after a restart."""
    return hashlib.sha256(str(config.output.resolve()).encode()).hexdigest()[:16]


class Console:
    """One line an iteration with loss, learning rate, speed, share done and time to go."""

    def __init__(self, config: RunConfig, first_iteration: int) -> None:
        self._config = config
        self._first = first_iteration
        self._started = time.monotonic()

    def iteration(self, iteration: int, values: Mapping[str, Any]) -> None:
        """Tell of iteration `iteration` (1-based)."""
        total = self._config.train_iters
        if iteration % self._config.logging.interval_iters and iteration != total:
            return
        elapsed = time.monotonic() - self._started
        remaining = elapsed / (iteration - self._first) * (total - iteration)
        skipped = "  SPIKE, no update" if values["skipped"] else ""
        mfu = f"  MFU {values['mfu_percent']:.1f} %" if "mfu_percent" in values else ""
        print(f"train: {iteration}/{total} iterations  {100 * iteration / total:.0f} %  loss {values['loss']:.4f}  "
              f"gradient norm {values['grad_norm']:.2f}  lr {values['lr']:.2e}  "
              f"{values['tokens_per_second']:,.0f} tokens/s{mfu}  ETA {format_seconds(remaining)}{skipped}", flush=True)

    def validation(self, iteration: int, sources: Mapping[str, Mapping[str, float]]) -> None:
        """Tell of a validation after `iteration` iterations."""
        losses = "  ".join(f"{name} {loss['nats_per_token']:.4f} nats/token {loss['bits_per_byte']:.4f} bits/byte"
                           for name, loss in sources.items())
        print(f"validation after {iteration} iterations: {losses}", flush=True)


def _drop_after(path: Path, iteration: int) -> None:
    """Keep the events of the first `iteration` iterations (of none: nothing, the first validation comes again).

    The others are moved to a file beside, for whoever wants to know what a run was that went back.
    """
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    kept, dropped = [], []
    for line in lines:
        (kept if 0 < iteration >= _iteration_of(line) else dropped).append(line)
    if dropped:
        with open(path.with_name(DROPPED), "a", encoding="utf-8") as file:
            file.write("".join(line if line.endswith("\n") else line + "\n" for line in dropped))
    write_text(path, "".join(kept))


def _iteration_of(line: str) -> float:
    """Iteration of an event; infinite for a line cut by a kill."""
    try:
        return json.loads(line)["iteration"] if line.endswith("\n") else math.inf
    except ValueError:
        return math.inf


def _flatten(values: Mapping[str, Any], prefix: str) -> list[tuple[str, float]]:
    flat = []
    for name, value in values.items():
        key = f"{prefix}/{name}"
        if isinstance(value, Mapping):
            flat += _flatten(value, key)
        elif isinstance(value, int | float):
            flat.append((key, value))
    return flat
