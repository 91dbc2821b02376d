"""Tensors on their way from file to file: read only when they are touched, and made one ahead of their use."""

from __future__ import annotations

import mmap
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def map_tensor(path: Path, offset: int, num_elements: int, dtype: torch.dtype, whole: bool) -> Tensor:
    """The elements at a byte offset of a file, one axis; writing to them does not change the file.

    Args:
        whole: all of it will be used, so let the disk begin to read; otherwise only what is touched is read.
    """
    if num_elements == 0:
        return torch.empty(0, dtype=dtype)
    aligned = offset // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
    length = offset - aligned + num_elements * dtype.itemsize
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), length, offset=aligned, access=mmap.ACCESS_COPY)
    if whole and hasattr(mmap, "MADV_WILLNEED"):
        mapped.madvise(mmap.MADV_WILLNEED)
    return torch.frombuffer(mapped, dtype=dtype, offset=offset - aligned)


def made_ahead(makers: Iterable[Callable[[], T]], ahead: int = 1) -> Iterator[T]:
    """What the functions return, in their order; a second thread calls the next ones while one is being used.

    Args:
        ahead: so many at most are made or wait before they are asked for.
    """
    pool = ThreadPoolExecutor(max_workers=1)
    coming: deque[Future[T]] = deque()
    try:
        for make in makers:
            coming.append(pool.submit(make))
            if len(coming) > ahead:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
