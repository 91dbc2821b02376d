"""Run a function over tasks in worker processes or threads, results in the order of the tasks."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import TypeVar

from megatron_ext.errors import UserError

Task = TypeVar("Task")
Result = TypeVar("Result")


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


class Workers:
    """Processes and threads that run functions over tasks; they start when they are first needed, and end with the
    `with` block.
    """

    def __init__(self, num: int) -> None:
        self.num = num
        self._processes: Executor | None = None
        self._threads: Executor | None = None

    def map_in_order(self, function: Callable[[Task], Result], tasks: Iterable[Task],
                     in_threads: bool = False) -> Iterator[Result]:
        """Yield `function(task)` for each task, in order; at most two tasks a worker are under way or waiting.

        Tasks are drawn as they are needed. One worker, or one task, runs in this thread.

        Args:
            function: importable (no lambda), unless it runs in threads.
            in_threads: for what leaves Python for most of its time: nothing is started or sent.

        Raises what the function raised, and UserError when a worker was killed.
        """
        if self.num <= 1 or (isinstance(tasks, Sized) and len(tasks) <= 1):
            yield from map(function, tasks)
            return
        pool = self._pool(in_threads)
        waiting: deque[Future[Result]] = deque()
        try:
            for task in tasks:
                waiting.append(pool.submit(function, task))
                if len(waiting) >= 2 * self.num:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        except BrokenProcessPool:
            raise UserError(f"a worker process was killed, perhaps for want of memory; run the same command again with "
                            f"fewer than {self.num} workers: it goes on where it stopped") from None

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 trace: TracebackType | None) -> None:
        for pool in (self._processes, self._threads):
            if pool is not None:
                pool.shutdown(wait=kind is None, cancel_futures=True)

    def _pool(self, in_threads: bool) -> Executor:
        if in_threads:
            self._threads = self._threads or ThreadPoolExecutor(self.num)
            return self._threads
        self._processes = self._processes or self._start()
        return self._processes

    def _start(self) -> ProcessPoolExecutor:
        context = multiprocessing.get_context("spawn")  # a fork would copy the locks of Arrow's threads
        return ProcessPoolExecutor(self.num, mp_context=context, initializer=end_with_parent)


def map_in_order(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """`Workers.map_in_order` with processes of its own, no more than tasks."""
    with Workers(min(workers, len(tasks)) if isinstance(tasks, Sized) else workers) as processes:
        yield from processes.map_in_order(function, tasks)


def end_with_parent() -> None:
    """End with the parent, also when that one is killed: an orphan would go on writing into its folder."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
