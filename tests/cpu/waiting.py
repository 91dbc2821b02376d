"""Where the host would wait for a GPU, found out on a CPU by following which tensors would be on a device.

On the device are the model, what is copied to it or made there (`device=` a torch.device, as programs for a GPU say),
and whatever is computed of such tensors. All others are the host's.
"""

from __future__ import annotations

import itertools
import traceback
from collections import Counter
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAIT, COPY, BLOCKING_COPY, TOO_EARLY = "waits", "copies", "blocking copies", "reads of what is not there yet"
_SIZES_FROM_DATA = ("nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive")


class Tracker:
    """Counts, for the calling thread, how often the host waits for the device and copies to it."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.places: list[str] = []
        """What was counted, and the line that did it; copies that block nobody are left out."""
        self._device: set[int] = set()
        self._coming: set[int] = set()
        self._kept: list[torch.Tensor] = []  # as long as a tensor lives, nothing else has the address of its storage

    def __enter__(self) -> Tracker:
        self._modes = [_Functions(self), _Operators(self)]
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*exception)

    def put_on_device(self, tensors: object) -> None:
        """From here on these are on the device."""
        for tensor in _tensors(tensors):
            self._device.add(_address(tensor))
            self._kept.append(tensor)

    def is_on_device(self, tensor: torch.Tensor) -> bool:
        return _address(tensor) in self._device

    def is_coming(self, tensor: torch.Tensor) -> bool:
        """Whether it is a copy on its way to the host."""
        return _address(tensor) in self._coming

    def count(self, what: str) -> None:
        self.counts[what] += 1
        if what != COPY:
            self.places.append(f"{what}: {_line()}")
        if what == WAIT:
            self._coming.clear()

    def to_device(self, value: torch.Tensor, blocking: bool) -> torch.Tensor:
        self.count(BLOCKING_COPY if blocking else COPY)
        copy = value.clone()
        self.put_on_device(copy)
        return copy

    def to_host(self, value: torch.Tensor, blocking: bool) -> torch.Tensor:
        copy = value.detach().clone()
        self._device.discard(_address(copy))
        self._kept.append(copy)
        if blocking:
            self.count(WAIT)
        else:
            self._coming.add(_address(copy))
        return copy


class _Functions(TorchFunctionMode):
    """Copies between host and device, which on a CPU do nothing and so reach no operator."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        self._tracker = tracker

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs, tracker = kwargs or {}, self._tracker
        name = getattr(function, "__name__", "")
        if name in ("tolist", "numpy", "cpu") and tracker.is_on_device(args[0]):
            args = (tracker.to_host(args[0], blocking=True), *args[1:])
        elif name == "to":
            targets = [value for value in (*args[1:2], kwargs.get("device")) if isinstance(value, str | torch.device)]
            blocking = not kwargs.get("non_blocking", False)
            if targets == ["cpu"] and tracker.is_on_device(args[0]):
                return tracker.to_host(args[0], blocking)
            if targets and isinstance(targets[0], torch.device) and not tracker.is_on_device(args[0]):
                return tracker.to_device(args[0], blocking)
        result = function(*args, **kwargs)
        if isinstance(kwargs.get("device"), torch.device):
            if name in ("tensor", "as_tensor"):
                return tracker.to_device(result, blocking=True)
            tracker.put_on_device(result)
        return result


class _Operators(TorchDispatchMode):
    """What is computed of tensors of the device is there, too; and what makes the host read one of them."""

    def __init__(self, tracker: Tracker) -> None:
        super().__init__()
        self._tracker = tracker

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        tracker, name = self._tracker, function.overloadpacket.__name__
        given = _tensors((args, kwargs))
        if any(map(tracker.is_coming, given)):
            tracker.count(TOO_EARLY)
        on_device = [tensor for tensor in given if tracker.is_on_device(tensor)]
        if on_device:
            if name in ("_local_scalar_dense", *_SIZES_FROM_DATA) or _is_chosen_by_truth(name, given):
                tracker.count(WAIT)
            if name == "copy_" and args[1].dim() and not all(map(tracker.is_on_device, args[:2])) and not _is_gloo():
                tracker.count(BLOCKING_COPY)
        result = function(*args, **kwargs or {})
        if on_device:
            tracker.put_on_device(result)
        return result


def _is_chosen_by_truth(name: str, given: list[torch.Tensor]) -> bool:
    return name == "index" and any(tensor.dtype == torch.bool for tensor in given[1:])


def _is_gloo() -> bool:
    """Whether a collective's transport is at work, which is another one on a GPU."""
    names = (frame.filename for frame in reversed(traceback.extract_stack()) if frame.filename != __file__)
    return any("/torch/distributed/" in name for name in itertools.takewhile(lambda name: "/torch/" in name, names))


def _tensors(values: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, torch.Tensor)]


def _address(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _line() -> str:
    """The innermost lines that are neither this file's nor a library's of Python or torch, or a wrapper's."""
    frames = [frame for frame in traceback.extract_stack() if frame.filename != __file__ and not any(
        part in frame.filename for part in ("/torch/", "contextlib.py", "model/cpu.py"))]
    return " < ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.line}" for frame in frames[:-4:-1])
