"""The training run: build or resume, iterate, validate, save, stop."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import yaml

from megatron_ext.artifacts import (
    MANIFEST,
    Artifact,
    differences,
    is_finished,
    publish_in_place,
    write_json,
    write_text,
)
from megatron_ext.config import RunConfig
from megatron_ext.data.blend import BlendPlan, plan_blend
from megatron_ext.data.dataset import BlendedDataset, PackedSource
from megatron_ext.errors import UserError
from megatron_ext.progress import format_seconds
from megatron_ext.training.checkpoint import checkpoint_folder, load_latest_checkpoint, run_identity, save_checkpoint
from megatron_ext.training.parallel import is_main_rank, main_rank_decides
from megatron_ext.training.preflight import describe_run, source_sizes
from megatron_ext.training.state import TrainState, build_train_state
from megatron_ext.training.step import train_step
from megatron_ext.training.throughput import train_flops_per_token
from megatron_ext.training.validation import validate
from megatron_ext.training.writers import Console, MetricsWriter

STOP_FILE = "STOP"
EXPOSURE = "exposure.json"


def train(config: RunConfig) -> bool:
    """Run, or go on with, a checked training run under the initialised process groups; all ranks call it.

    Returns True when the run is finished, False when it was asked to stop (a STOP file in the run folder, SIGTERM or
    SIGUSR1); its state is saved then, and the same call goes on.
    """
    identity = run_identity(config)
    if is_finished(config.output):
        _refuse_other_run(config, identity)
        return True
    plan = plan_blend(config, source_sizes(config))
    if is_main_rank():
        _prepare_folder(config)
        print(describe_run(config), flush=True)

    state = build_train_state(config)
    if load_latest_checkpoint(state, identity) and is_main_rank():
        print(f"train: resumed after iteration {state.iteration}", flush=True)
    dataset = open_dataset(config, plan)
    finished = _iterate(state, dataset, identity)
    if finished and is_main_rank():
        _finish(config, dataset, identity)
    return finished


def open_dataset(config: RunConfig, plan: BlendPlan) -> BlendedDataset:
    """The samples of the run, in its order."""
    return BlendedDataset(plan, [
        PackedSource(source.path / "train", name, config.data.seq_length, config.train.seed)
        for name, source in config.data.sources.items()
    ])


def _iterate(state: TrainState, dataset: BlendedDataset, identity: dict[str, Any]) -> bool:
    config = state.config
    stop = StopRequest(config.output / STOP_FILE)
    recorder = _Recorder(state) if is_main_rank() else None
    if state.iteration == 0:
        _validate(state, recorder)
    while state.iteration < config.train_iters:
        started = time.monotonic()
        result = train_step(state, dataset, state.iteration)
        if recorder:
            recorder.iteration(state.iteration, vars(result), time.monotonic() - started)
        last = state.iteration == config.train_iters
        stopping = not last and main_rank_decides(stop.is_requested())
        if last or _is_due(state, config.validation.interval_tokens):
            _validate(state, recorder)
        kept = state.iteration in config.kept_iterations
        if last or stopping or kept or _is_due(state, config.checkpoint.interval_tokens):
            started = time.monotonic()
            save_checkpoint(state, identity)
            if recorder:
                write_json(config.output / EXPOSURE, _ledger(config, dataset, state.iteration))
                recorder.checkpoint(state.iteration, time.monotonic() - started)
        if stopping:
            if recorder:
                print(f"train: asked to stop; saved after iteration {state.iteration}", flush=True)
            return False
    return True


def _is_due(state: TrainState, interval_tokens: int | None) -> bool:
    interval = state.config.iterations(interval_tokens)
    return interval is not None and state.iteration % interval == 0


def _validate(state: TrainState, recorder: _Recorder | None) -> None:
    if state.config.validation.sources:
        losses = validate(state)
        if recorder:
            recorder.validation(state.iteration, losses)


class StopRequest:
    """Whether the run was asked to stop. A signal only leaves a note: saving inside a handler would be unsafe."""

    def __init__(self, stop_file: Path) -> None:
        self._stop_file = stop_file
        self._signalled = False
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._note)

    def is_requested(self) -> bool:
        """True after SIGTERM or SIGUSR1, or when the STOP file is there."""
        return self._signalled or self._stop_file.exists()

    def _note(self, number: int, frame: object) -> None:
        self._signalled = True


class _Recorder:
    """The main rank's metrics file and console."""

    def __init__(self, state: TrainState) -> None:
        config = state.config
        self._config = config
        self._metrics = MetricsWriter(config, state.iteration)
        self._console = Console(config, state.iteration)
        self._flops_per_token = train_flops_per_token(state.model[0].module.architecture, config.data.seq_length)
        parallel = config.parallel
        self._num_ranks = (state.dp_size * parallel.tensor_model_parallel_size
                           * parallel.pipeline_model_parallel_size)

    def iteration(self, iteration: int, result: dict[str, Any], seconds: float) -> None:
        tokens_per_second = self._config.tokens_per_iteration / seconds
        tflops = tokens_per_second * self._flops_per_token / self._num_ranks / 1e12
        values = {
            **result,
            "tokens": iteration * self._config.tokens_per_iteration,
            "tokens_per_second": round(tokens_per_second, 2),
            "tflops_per_rank": round(tflops, 4),
        }
        if self._config.logging.peak_tflops:
            values["mfu_percent"] = round(100 * tflops / self._config.logging.peak_tflops, 2)
        self._metrics.write("train", iteration, values)
        self._console.iteration(iteration, values)

    def checkpoint(self, iteration: int, seconds: float) -> None:
        self._metrics.write("checkpoint", iteration, {"seconds": round(seconds, 2)})
        print(f"checkpoint after {iteration} iterations: saved in {format_seconds(seconds)}", flush=True)

    def validation(self, iteration: int, losses: dict[str, dict[str, float]]) -> None:
        self._metrics.write("validation", iteration, {"sources": losses})
        self._console.validation(iteration, losses)


def _prepare_folder(config: RunConfig) -> None:
    config.output.mkdir(parents=True, exist_ok=True)
    (config.output / STOP_FILE).unlink(missing_ok=True)
    settings = config.model_dump(mode="json")
    write_text(config.output / "config.yaml", yaml.safe_dump(settings, sort_keys=False, allow_unicode=True))


def _ledger(config: RunConfig, dataset: BlendedDataset, iteration: int) -> dict[str, Any]:
    return {"iteration": iteration, "sources": dataset.exposure(iteration * config.train.global_batch_size)}


def _finish(config: RunConfig, dataset: BlendedDataset, identity: dict[str, Any]) -> None:
    """Publish the run folder: from here on it is an artifact, and running it again does nothing."""
    inputs = {f"source {name}": source.path for name, source in config.data.sources.items()}
    inputs |= {f"validation {name}": path for name, path in config.validation.sources.items()}
    publish_in_place(
        config.output, kind="run", settings={"run": identity}, inputs={"model": config.model.hf_folder, **inputs},
        counts={"iterations": config.train_iters, "tokens": config.train_iters * config.tokens_per_iteration,
                "checkpoint": str(checkpoint_folder(config, config.train_iters).relative_to(config.output)),
                "exposure": _ledger(config, dataset, config.train_iters)["sources"]},
    )


def _refuse_other_run(config: RunConfig, identity: dict[str, Any]) -> None:
    made = Artifact.open(config.output, kind="run").settings["run"]
    changes = [f"{key} was {before!r}, is {now!r}" for key, before, now in differences(made, identity)]
    if changes:
        raise UserError(f"{config.output / MANIFEST}: a finished run with other settings is there "
                        f"({'; '.join(changes)}); choose another output folder")
