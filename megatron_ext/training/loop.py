"""The training run: build or resume, iterate, validate, save, stop."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from megatron_ext.artifacts import publish_in_place, write_json
from megatron_ext.config import RunConfig
from megatron_ext.data.provenance import open_run_data
from megatron_ext.model.parallel import any_rank, is_main_rank, on_main_rank
from megatron_ext.training.checkpoint import CheckpointSaver, load_checkpoint
from megatron_ext.training.guards import Watchdog
from megatron_ext.training.ledger import Ledger
from megatron_ext.training.preflight import describe_run, source_sizes
from megatron_ext.training.reader import BatchReader
from megatron_ext.training.resume import Start, begin, changes_on_the_way, find_start
from megatron_ext.training.run_folder import EXPOSURE, STOP_FILE, checkpoint_folder, run_identity, run_inputs
from megatron_ext.training.state import TrainState, build_train_state
from megatron_ext.training.step import StepResult, pass_over, train_step
from megatron_ext.training.throughput import train_flops_per_token
from megatron_ext.training.trunk import plan_run
from megatron_ext.training.validation import validate
from megatron_ext.training.writers import Console, MetricsWriter


def train(config: RunConfig) -> bool:
    """Run, or go on with, a checked training run under the initialised process groups; all ranks call it.

    Returns True when the run is finished, False when it was asked to stop (a STOP file in the run folder, SIGTERM,
    SIGUSR1 or Ctrl-C, train.exit_duration_minutes); its state is saved then, and the same call goes on.
    """
    stop = StopRequest(config.output / STOP_FILE, config.train.exit_duration_minutes)
    start = on_main_rank(lambda: find_start(config))
    if start.is_finished:
        return True
    plan = plan_run(config, source_sizes(config))
    if is_main_rank():
        print("".join(f"train: {line}\n" for line in start.told), end="", flush=True)
        begin(config, start, dist.get_world_size())
        print(describe_run(config), flush=True)

    identity = run_identity(config)
    state = _state_at(config, start)
    ledger = Ledger(config, open_run_data(config, plan), identity, start.trunk)
    finished = _iterate(state, ledger, identity, stop, begins=start.checkpoint is None)
    if finished and is_main_rank():
        _finish(config, ledger, identity)
    return finished


def _state_at(config: RunConfig, start: Start) -> TrainState:
    """The state that a launch begins with."""
    trunk, told = start.trunk, f"train: resumed after iteration {start.iteration}"
    if trunk is not None:
        told = f"train: starts after iteration {start.iteration} of {trunk.checkpoint.path}"
    if trunk is not None and not config.start.optimizer:
        state = build_train_state(config, trunk.checkpoint.path)
        state.go_on_after(start.iteration)
    else:
        state = build_train_state(config)
        if folder := trunk.checkpoint.path if trunk else start.checkpoint:
            load_checkpoint(state, folder)
    if start.iteration and is_main_rank():
        print(told, flush=True)
    return state


def _iterate(state: TrainState, ledger: Ledger, identity: dict[str, Any], stop: StopRequest, begins: bool) -> bool:
    """Iterate to the end or a request to stop; True at the end.

    Args:
        begins: nothing of the run is done yet.
    """
    config = state.config
    recorder = _Recorder(state, ledger, begins) if is_main_rank() else None
    saver = CheckpointSaver(state, identity, ledger.what_was_read,
                            recorder.checkpoint if recorder else lambda iteration: None)
    watchdog = Watchdog(config.guard.hang_minutes, config.output)
    stopping = False
    if begins:
        _validate(state, recorder)
    with closing(BatchReader(state, ledger.dataset)) as reader:
        while state.iteration < config.train_iters and not stopping:
            asked = _advance(state, reader, stop, recorder)
            watchdog.tell_alive()
            saver.poll()
            last = state.iteration == config.train_iters
            stopping = asked and not last
            if last or _is_due(state, config.validation.interval_tokens):
                _validate(state, recorder)
            kept = state.iteration in config.kept_iterations
            if last or stopping or kept or _is_due(state, config.checkpoint.interval_tokens):
                with reader.idle():
                    saver.save()
            watchdog.tell_alive()
    saver.finish()
    watchdog.close()
    if recorder:
        recorder.close()
    dist.barrier()  # nobody writes into the run folder any more
    if stopping and recorder:
        print(f"train: asked to stop; saved after iteration {state.iteration}", flush=True)
    return not stopping


def _advance(state: TrainState, reader: BatchReader, stop: StopRequest, recorder: _Recorder | None) -> bool:
    """Train an iteration, or pass over it; whether any rank was asked to stop."""
    started = time.monotonic()
    if state.config.train.is_skipped(state.iteration + 1):
        pass_over(state)
        if recorder:
            recorder.passed_over(state.iteration)
        return bool(any_rank(stop.is_requested()))
    result, asked = train_step(state, reader, stop.is_requested)
    parts = state.clock.read()
    if recorder:
        recorder.iteration(state.iteration, result, time.monotonic() - started, parts)
    return asked


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

    def __init__(self, stop_file: Path, minutes: float | None = None) -> None:
        self._stop_file = stop_file
        self._deadline = math.inf if minutes is None else time.monotonic() + 60 * minutes
        self._signalled = False
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            signal.signal(number, self._note)

    def is_requested(self) -> bool:
        """True after SIGTERM, SIGUSR1 or Ctrl-C, when the STOP file is there, or when the time is over."""
        return self._signalled or self._stop_file.exists() or time.monotonic() > self._deadline

    def _note(self, number: int, frame: object) -> None:
        self._signalled = True


class _Recorder:
    """The main rank's metrics file and console."""

    def __init__(self, state: TrainState, ledger: Ledger, begins: bool) -> None:
        config = state.config
        self._config = config
        self._ledger = ledger
        self._metrics = MetricsWriter(config, 0 if begins else state.iteration)
        self._console = Console(config, state.iteration)
        self._flops_per_token = train_flops_per_token(state.model[0].module.architecture, config.data.seq_length)
        self._num_ranks = dist.get_world_size()

    def iteration(self, iteration: int, result: StepResult, seconds: float, parts: Mapping[str, float]) -> None:
        tokens_per_second = self._config.tokens_per_iteration / seconds
        tflops = tokens_per_second * self._flops_per_token / self._num_ranks / 1e12
        values = {
            **vars(result),
            "tokens": iteration * self._config.tokens_per_iteration,
            "tokens_per_second": round(tokens_per_second, 2),
            "tflops_per_rank": round(tflops, 4),
            "seconds": {"iteration": round(seconds, 5),
                        **{part: round(value, 5) for part, value in parts.items()}},
        }
        if torch.cuda.is_available():
            values["peak_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        if self._config.logging.peak_tflops:
            values["mfu_percent"] = round(100 * tflops / self._config.logging.peak_tflops, 2)
        self._metrics.write("train", iteration, values)
        self._console.iteration(iteration, values)

    def passed_over(self, iteration: int) -> None:
        """An iteration of train.skip_iterations."""
        self._metrics.write("passed_over", iteration, {"tokens": iteration * self._config.tokens_per_iteration})
        print(f"train: iteration {iteration} is passed over (train.skip_iterations)", flush=True)

    def checkpoint(self, iteration: int) -> None:
        """A checkpoint is whole: the ledger of what the model has seen goes with it."""
        write_json(self._config.output / EXPOSURE, self._ledger.at(iteration))
        print(f"checkpoint after {iteration} iterations: saved", flush=True)

    def close(self) -> None:
        """Everything is recorded."""
        self._metrics.close()

    def validation(self, iteration: int, losses: dict[str, dict[str, float]]) -> None:
        self._metrics.write("validation", iteration,
                            {"tokens": iteration * self._config.tokens_per_iteration, "sources": losses})
        self._console.validation(iteration, losses)


def _finish(config: RunConfig, ledger: Ledger, identity: dict[str, Any]) -> None:
    """Publish the run folder: from here on it is an artifact, and running it again does nothing.

    Its content is the last checkpoint and the ledger; what tells of the way there lies beside them.
    """
    last = str(checkpoint_folder(config, config.train_iters).relative_to(config.output))
    publish_in_place(
        config.output, kind="run", settings={"run": identity},
        inputs=run_inputs(config),
        counts={"iterations": config.train_iters, "tokens": config.train_iters * config.tokens_per_iteration,
                "checkpoint": last, "exposure": ledger.at(config.train_iters)["sources"],
                "changes": changes_on_the_way(config.output)},
        beside=lambda name: name != EXPOSURE and not name.startswith(f"{last}/"),
    )
