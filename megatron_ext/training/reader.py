"""Micro-batches of a run, read ahead by a thread while the device computes."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

import torch

from megatron_ext.data.dataset import BlendedDataset, micro_batch_positions
from megatron_ext.errors import UserError
from megatron_ext.model.parallel import device
from megatron_ext.model.streaming import made_ahead
from megatron_ext.training.batch import HostBatch
from megatron_ext.training.state import TrainState

_SAMPLES_AHEAD = 64
"""So many at least, and a whole iteration, wait in (pinned) memory, for a disk may be slow for a while: of 4,096 tokens
8 MB."""


class BatchReader:
    """Reads this rank's micro-batches in the order of the run, from the state's iteration on.

    Those of iterations that are passed over are not read. Every rank reads its own samples: cheaper than broadcasting
    them.
    """

    def __init__(self, state: TrainState, dataset: BlendedDataset) -> None:
        self.dataset = dataset
        self._state = state
        self._device = device()
        self._reading = threading.Lock()
        ahead = max(_SAMPLES_AHEAD // state.config.train.micro_batch_size, state.num_micro_batches)
        self._coming = made_ahead(self._makers(), ahead)

    def micro_batches(self, iteration: int) -> list[HostBatch]:
        """Those of an iteration, counted from 0; iterations are asked for in order.

        Raises UserError, naming the iteration, where its data cannot be read, before anything of it is computed.
        """
        with self._state.clock.measure("data", on_host=True):
            batches = list(itertools.islice(self._coming, self._state.num_micro_batches))
        assert batches[0].positions[0] // self._state.config.train.global_batch_size == iteration
        return batches

    def idle(self) -> AbstractContextManager[object]:
        """While it lasts nothing is read: a process that is forked then finds no lock taken by the thread."""
        return self._reading

    def close(self) -> None:
        """End the thread; what was read ahead is dropped."""
        self._coming.close()

    def _makers(self) -> Iterator[Callable[[], HostBatch]]:
        config = self._state.config
        for iteration in range(self._state.iteration, config.train_iters):
            if not config.train.is_skipped(iteration + 1):
                yield from (partial(self._read, iteration, number) for number in range(self._state.num_micro_batches))

    def _read(self, iteration: int, micro_batch: int) -> HostBatch:
        """One micro-batch; called in the thread, which has a current GPU of its own."""
        config = self._state.config
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        positions = micro_batch_positions(
            iteration, micro_batch, global_batch_size=config.train.global_batch_size,
            micro_batch_size=config.train.micro_batch_size, dp_rank=self._state.dp_rank, dp_size=self._state.dp_size)
        with self._reading:
            try:
                samples = [self.dataset[position] for position in positions]
            except (UserError, OSError) as error:
                raise UserError(f"iteration {iteration + 1} cannot be read: {error}") from error
            return HostBatch.of(positions, samples, config.data, config.packs_documents)
