"""Checkpoints of a run: complete or not there, loadable under any layout, refused when the run has changed.

`<run>/checkpoints/iter_0000042/` is an artifact that holds megatron-core's distributed checkpoint (model, optimizer,
schedule), `run_state.json` (iteration, identity of the run, memory of the spike guard) and `hf/` (the base model's
config and tokenizer files, so that it can be exported without the base model). `latest` names the newest whole one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.serialization import get_default_save_sharded_strategy
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue

from megatron_ext.artifacts import (
    Artifact,
    delete_artifact,
    differences,
    partial_folder,
    publish_in_place,
    reference,
    write_json,
    write_text,
)
from megatron_ext.config import RunConfig
from megatron_ext.errors import UserError
from megatron_ext.model.hf_weights import copy_hf_metadata
from megatron_ext.training.parallel import is_main_rank
from megatron_ext.training.state import TrainState

LATEST = "latest"
RUN_STATE = "run_state.json"
_MODEL_CHUNK = "model{}"


def checkpoint_folder(config: RunConfig, iteration: int) -> Path:
    """Where the checkpoint after `iteration` iterations lies."""
    return config.output / "checkpoints" / f"iter_{iteration:07d}"


def run_identity(config: RunConfig) -> dict[str, Any]:
    """What must be equal for a checkpoint to be continued: everything but layout, places and what is only watched."""
    settings = config.model_dump(mode="json", exclude={"output", "parallel", "checkpoint", "validation", "logging"})
    settings["guard"].pop("hang_minutes")
    settings["model"]["hf_folder"] = reference(config.model.hf_folder)["content_hash"]
    for name, source in config.data.sources.items():
        settings["data"]["sources"][name]["path"] = reference(source.path)["content_hash"]
    for key in ("micro_batch_size", "exit_duration_minutes"):
        settings["train"].pop(key)
    return settings


class CheckpointSaver:
    """Saves the state of a run; all ranks call each method at the same iteration.

    An asynchronous save copies the state to the host's memory and writes it in a forked process while training goes on;
    it is published at the first `poll` after every rank has written its part.
    """

    def __init__(self, state: TrainState, identity: dict[str, Any], published: Callable[[int], None]) -> None:
        """
        Args:
            published: called on the main rank, with its iteration, when a checkpoint is whole.
        """
        self._state = state
        self._identity = identity
        self._published = published
        self._queue = AsyncCallsQueue(persistent=False)

    def save(self) -> None:
        """Save the state after `state.iteration` iterations."""
        self.finish()  # one at a time: each holds a copy of the state
        state = self._state
        folder = checkpoint_folder(state.config, state.iteration)
        partial = partial_folder(folder)
        run_state = {"iteration": state.iteration, "identity": self._identity, "spikes": state.spikes.state_dict()}
        if is_main_rank():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        dist.barrier()
        state.gather_weights()
        request = dist_checkpointing.save(
            _sharded_state(state, is_loading=False), str(partial),
            async_sharded_save=state.config.checkpoint.asynchronous,
            sharded_strategy=get_default_save_sharded_strategy("torch_dist"), content_metadata=_content_metadata(),
        )

        def publish() -> None:
            dist.barrier()
            if is_main_rank():
                _publish(state.config, run_state, partial, folder)
                self._published(run_state["iteration"])
            dist.barrier()

        if request is None:
            publish()
        else:
            request.add_finalize_fn(publish)
            self._queue.schedule_async_request(request)

    def poll(self) -> None:
        """Publish a checkpoint whose writers are done."""
        self._queue.maybe_finalize_async_calls(blocking=False)

    def finish(self) -> None:
        """Wait for the writers, and publish."""
        self._queue.maybe_finalize_async_calls(blocking=True)


def load_latest_checkpoint(state: TrainState, identity: dict[str, Any]) -> bool:
    """Load the run's newest checkpoint, written under any layout; False when there is none.

    Raises UserError when the run's data, model or schedule are not those of the checkpoint.
    """
    folder = latest_checkpoint(state.config)
    if folder is None:
        return False
    Artifact.open(folder, kind="checkpoint")
    run_state = json.loads((folder / RUN_STATE).read_text())
    _refuse_other_run(folder, run_state["identity"], identity)
    loaded = dist_checkpointing.load(_sharded_state(state, is_loading=True), str(folder))
    for number, chunk in enumerate(state.model):
        # Not strict: megatron's modules write `_extra_state` objects that hold nothing here.
        chunk.module.load_state_dict(loaded[_chunk_key(state, number)], strict=False)
    state.optimizer.load_state_dict(loaded["optimizer"])
    state.scheduler.load_state_dict(loaded["scheduler"])
    state.spikes.load_state_dict(run_state["spikes"])
    state.iteration = run_state["iteration"]
    return True


def latest_checkpoint(config: RunConfig) -> Path | None:
    """The folder of the run's newest whole checkpoint."""
    pointer = config.output / "checkpoints" / LATEST
    return pointer.parent / pointer.read_text().strip() if pointer.exists() else None


def _sharded_state(state: TrainState, is_loading: bool) -> dict[str, Any]:
    """This rank's shards under the names that megatron-core stores, which are the same for every layout."""
    metadata = {**_content_metadata(),
                "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}
    sharded: dict[str, Any] = {
        _chunk_key(state, number): chunk.module.sharded_state_dict(metadata=dict(metadata))
        for number, chunk in enumerate(state.model)
    }
    sharded["optimizer"] = state.optimizer.sharded_state_dict(sharded, is_loading=is_loading, metadata=dict(metadata))
    sharded["scheduler"] = state.scheduler.state_dict()
    return sharded


def _content_metadata() -> dict[str, Any]:
    return {
        "distrib_optim_sharding_type": "fully_reshardable",  # loads under another tp, pp and dp
        "chained_optim_avoid_prefix": True,
        "singleton_local_shards": False,
    }


def _chunk_key(state: TrainState, number: int) -> str:
    return _MODEL_CHUNK.format(number) if len(state.model) > 1 else "model"


def _publish(config: RunConfig, run_state: dict[str, Any], partial: Path, folder: Path) -> None:
    """Main rank: the whole checkpoint appears under its name, then `latest` moves to it, then old ones go."""
    iteration = run_state["iteration"]
    copy_hf_metadata(config.model.hf_folder, partial / "hf")
    write_json(partial / RUN_STATE, run_state)
    publish_in_place(
        partial, kind="checkpoint", settings={"iteration": iteration, "run": run_state["identity"]},
        inputs={"model": config.model.hf_folder,
                **{f"source {name}": source.path for name, source in config.data.sources.items()}},
        counts={"iteration": iteration, "tokens": iteration * config.tokens_per_iteration},
    )
    shutil.rmtree(folder, ignore_errors=True)  # only a damaged one could be there
    partial.rename(folder)
    write_text(folder.parent / LATEST, folder.name + "\n")
    kept = {checkpoint_folder(config, iteration) for iteration in config.kept_iterations}
    for old in sorted(folder.parent.glob("iter_???????"))[: -config.checkpoint.keep_last]:
        if old not in kept:
            delete_artifact(old)


def _refuse_other_run(folder: Path, saved: dict[str, Any], asked: dict[str, Any]) -> None:
    changes = [f"{key} was {before!r}, is {now!r}" for key, before, now in differences(saved, asked)]
    if changes:
        raise UserError(f"{folder} belongs to a run with other settings ({'; '.join(changes)}): going on from it would "
                        "mix two runs; restore the settings or choose another output folder")
