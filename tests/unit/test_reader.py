"""Micro-batches are read ahead, in order, without end of the thread's troubles being lost."""

import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from megatron_ext.data.dataset import Sample
from megatron_ext.errors import UserError


class Dataset:
    """Samples that tell which was read, and when."""

    def __init__(self, broken=None, slow=None):
        self.broken, self.slow = broken, slow
        self.go_on = threading.Event()
        self.read = []
        self.grew = threading.Condition()

    def __getitem__(self, position):
        with self.grew:
            self.read.append(position)
            self.grew.notify_all()
        if position == self.slow:
            assert self.go_on.wait(20)
        if position == self.broken:
            raise UserError("train.bin ends at byte 7")
        return Sample(*(np.full(8, position, dtype) for dtype in (np.int64, np.int64, np.float32, np.int64)))

    def wait_for(self, number):
        with self.grew:
            return self.grew.wait_for(lambda: len(self.read) >= number, timeout=20)


@pytest.fixture
def make_reader(monkeypatch):
    from megatron_ext.config import DataConfig
    from megatron_ext.training import batch, reader
    from megatron_ext.training.clock import Clock

    monkeypatch.setattr(batch.parallel_state, "get_context_parallel_group",
                        lambda: SimpleNamespace(size=lambda: 1, rank=lambda: 0))
    opened = []

    def make(dataset, iteration=0, skipped=()):
        train = SimpleNamespace(global_batch_size=8, micro_batch_size=2, is_skipped=lambda number: number in skipped)
        config = SimpleNamespace(train=train, train_iters=100, data=DataConfig(sources={}), packs_documents=False)
        state = SimpleNamespace(config=config, num_micro_batches=2, dp_rank=1, dp_size=2,
                                iteration=iteration, clock=Clock())
        opened.append(reader.BatchReader(state, dataset))
        return opened[-1]

    yield make
    for one in opened:
        one.close()


def positions(reader, iteration):
    return [list(batch.positions) for batch in reader.micro_batches(iteration)]


def test_this_ranks_samples_come_in_order_and_none_of_passed_over_iterations(make_reader):
    dataset = Dataset()
    reader = make_reader(dataset, iteration=3, skipped=(5, 6))
    assert positions(reader, 3) == [[26, 27], [30, 31]]
    assert positions(reader, 6) == [[50, 51], [54, 55]]
    reader.close()
    assert not {position // 8 for position in dataset.read} & {4, 5}


def test_no_more_is_read_than_is_asked_for_soon(make_reader):
    from megatron_ext.training.reader import _SAMPLES_AHEAD

    dataset = Dataset()
    reader = make_reader(dataset)
    positions(reader, 0)
    assert dataset.wait_for(4 + _SAMPLES_AHEAD)
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPool")]
    reader.close()
    assert len(dataset.read) == 4 + _SAMPLES_AHEAD
    assert not any(thread.is_alive() for thread in threads)


def test_an_error_names_the_iteration_when_its_turn_comes(make_reader):
    dataset = Dataset(broken=22)
    reader = make_reader(dataset)
    for iteration in range(2):
        positions(reader, iteration)
    with pytest.raises(UserError, match=r"^iteration 3 cannot be read: train.bin ends at byte 7$"):
        positions(reader, 2)


def test_nothing_is_read_while_the_reader_is_idle(make_reader):
    """Neither begun nor, when it becomes idle, under way."""
    dataset = Dataset(slow=2)
    reader = make_reader(dataset)
    asking = threading.Thread(target=positions, args=(reader, 0))
    with reader.idle():
        asking.start()
        time.sleep(0.05)
        assert dataset.read == []
    assert dataset.wait_for(1)  # the first sample is being read
    idle = threading.Event()

    def wait_until_idle():
        with reader.idle():
            idle.set()

    waiting = threading.Thread(target=wait_until_idle)
    waiting.start()
    assert not idle.wait(0.05)
    dataset.go_on.set()
    assert idle.wait(20)
    asking.join(20)
    waiting.join(20)


def test_the_host_hands_a_gpu_pinned_memory_and_does_not_wait(monkeypatch):
    """Every tensor that is copied was pinned before, and no copy blocks."""
    from megatron_ext.config import DataConfig
    from megatron_ext.model import parallel
    from megatron_ext.training import batch

    monkeypatch.setattr(batch.parallel_state, "get_context_parallel_group",
                        lambda: SimpleNamespace(size=lambda: 1, rank=lambda: 0))
    pinned, copied = [], []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: pinned.append(tensor) or tensor)
    data = DataConfig(sources={}, document_mask=True)
    batches = [batch.HostBatch.of(range(2), [Dataset()[1], Dataset()[2]], data, packed) for packed in (False, True)]
    monkeypatch.undo()

    def copy(tensor, *target, **options):
        copied.append((tensor, options))
        return tensor

    monkeypatch.setattr(parallel.torch.Tensor, "to", copy)
    monkeypatch.setattr(batch.parallel_state, "get_context_parallel_group",
                        lambda: SimpleNamespace(size=lambda: 1, rank=lambda: 0))
    for one in batches:
        one.for_stage(SimpleNamespace(pre_process=True, post_process=True))
    assert len(copied) == 2 * 4
    assert all(options == {"non_blocking": True} for _, options in copied)
    assert all(any(tensor is one for one in pinned) for tensor, _ in copied)
