"""Checkpoints of a run: complete or not there, loadable under any layout, refused when the run has changed.

`<run>/checkpoints/iter_0000042/` is an artifact that holds megatron-core's distributed checkpoint (model, optimizer,
schedule), `run_state.json` (iteration, identity of the run, memory of the spike guard, what was read) and `hf/` (the
base model's config and tokenizer files, so that it can be exported without the base model). `latest` names the newest
whole one.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.dist_checkpointing.strategies.async_utils import AsyncCallsQueue

from megatron_ext.artifacts import delete_artifact, partial_folder, publish_in_place, write_json, write_text
from megatron_ext.config import RunConfig
from megatron_ext.model.checkpoints import forget_place, without_absent_extras
from megatron_ext.model.hf_weights import copy_hf_metadata
from megatron_ext.model.parallel import is_main_rank
from megatron_ext.model.versions import save_checkpoint
from megatron_ext.training.optimizer_state import fit_to
from megatron_ext.training.resume import changes_on_the_way
from megatron_ext.training.run_folder import (
    LATEST,
    RUN_STATE,
    checkpoint_folder,
    checkpoint_folders,
    is_kept,
    mark_kept,
    run_inputs,
)
from megatron_ext.training.state import TrainState

_MODEL_CHUNK = "model{}"


class CheckpointSaver:
    """Saves the state of a run; all ranks call each method at the same iteration.

    An asynchronous save copies the state to the host's memory and writes it in a forked process while training goes on;
    it is published at the first `poll` after every rank has written its part.
    """

    def __init__(self, state: TrainState, identity: dict[str, Any], what_was_read: Callable[[int], dict[str, Any]],
                 published: Callable[[int], None]) -> None:
        """
        Args:
            what_was_read: called on the main rank, with the iteration, for what a branch must know of the data.
            published: called on the main rank, with its iteration, when a checkpoint is whole.
        """
        self._state = state
        self._identity = identity
        self._what_was_read = what_was_read
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
        request = save_checkpoint(_sharded_state(state, is_loading=False), partial,
                                  content_metadata=_content_metadata(),
                                  asynchronous=state.config.checkpoint.asynchronous)

        def publish() -> None:
            dist.barrier()
            if is_main_rank():
                run_state["data"] = self._what_was_read(run_state["iteration"])
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


def load_checkpoint(state: TrainState, folder: Path) -> None:
    """Load a checkpoint of the run or of its trunk, written under any layout; all ranks call it.

    Learning rates and the optimizer's settings are those of the run's own configuration: megatron-core would take the
    saved ones, of the scheduler and in the parameter groups, and a branch would train on with its trunk's.
    """
    run_state = json.loads((folder / RUN_STATE).read_text(encoding="utf-8"))
    asked = without_absent_extras(_sharded_state(state, is_loading=True), folder)
    loaded = dist_checkpointing.load(asked, str(folder))
    for number, chunk in enumerate(state.model):
        # Not strict: megatron's modules write `_extra_state` objects that hold nothing here.
        chunk.module.load_state_dict(loaded[_chunk_key(state, number)], strict=False)
    fit_to(state.optimizer.optimizer, loaded["optimizer"])
    state.optimizer.load_state_dict(loaded["optimizer"])
    state.spikes.load_state_dict(run_state["spikes"])
    state.go_on_after(run_state["iteration"])


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
    forget_place(partial)
    copy_hf_metadata(config.model.hf_folder, partial / "hf")
    write_json(partial / RUN_STATE, run_state)
    publish_in_place(
        partial, kind="checkpoint", settings={"iteration": iteration, "run": run_state["identity"]},
        inputs=run_inputs(config),
        counts={"iteration": iteration, "tokens": iteration * config.tokens_per_iteration,
                "changes": changes_on_the_way(config.output)},
    )
    shutil.rmtree(folder, ignore_errors=True)  # only a damaged one could be there
    partial.rename(folder)
    if iteration in config.kept_iterations:
        mark_kept(folder)
    write_text(folder.parent / LATEST, folder.name + "\n")
    for old in checkpoint_folders(config)[config.checkpoint.keep_last:]:
        if not is_kept(old):
            delete_artifact(old)
