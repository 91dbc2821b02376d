"""Child processes that do not outlive their parent."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import time
from pathlib import Path
from threading import Thread

_PR_SET_PDEATHSIG = 1
_LEAVING_SECONDS = 1800.0  # the longest save; a trainer without launcher that hangs must not keep its GPUs for ever
# Looked up once: in a child just forked from a process with threads, loading a library could block for ever.
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def die_with_parent() -> None:
    """Ask Linux to kill this process when its parent dies, even by kill -9; elsewhere do nothing.

    Without it a killed launcher would leave workers behind that write into a folder which the next launch uses.
    """
    if _prctl is None:
        return
    parent = os.getppid()
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the request
        os.kill(os.getpid(), signal.SIGKILL)


def die_with_launcher() -> None:
    """The same where torchrun started this process: of a killed one the workers would wait for each other for ever."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        _die_if_orphaned()
        die_with_parent()


def leave_with_parent() -> None:
    """Send this process SIGTERM when its parent ends, so that it can save; where kill -9 ended the parent, die at once.

    torchrun dies of SIGUSR1 and takes no worker along. Where the system cannot tell of a parent's end in time, this is
    `die_with_parent`.
    """
    _die_if_orphaned()
    parent = os.getppid()
    try:
        descriptor = os.pidfd_open(parent)
    except (AttributeError, OSError):
        die_with_parent()
        return
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
    Thread(target=_leave_after, args=(parent, descriptor), daemon=True).start()


def start_of(pid: int) -> str | None:
    """Start time of a process, in clock ticks since boot; None when it has ended."""
    fields = _fields(pid)
    return fields[19] if fields and fields[0] not in "ZX" else None


def _die_if_orphaned() -> None:
    """Die where torchrun was killed while this worker of it was still being loaded, and init has adopted it.

    A container's first process may be the launcher itself: a Python.
    """
    try:
        is_init = os.getppid() == 1 and b"python" not in Path("/proc/1/cmdline").read_bytes()
    except OSError:
        return
    if is_init:
        os.kill(os.getpid(), signal.SIGKILL)


def _leave_after(parent: int, descriptor: int) -> None:
    select.select([descriptor], [], [])
    if _signal_that_ended(parent) == signal.SIGKILL:
        os.kill(os.getpid(), signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_LEAVING_SECONDS)
    os.kill(os.getpid(), signal.SIGKILL)


def _signal_that_ended(pid: int) -> int | None:
    """The signal that a process ended by; None when it ended otherwise, or nobody knows any more."""
    fields = _fields(pid)
    return int(fields[49]) & 0x7F if fields and fields[0] in "ZX" else None


def _fields(pid: int) -> list[str] | None:
    """What Linux tells of a process, from its state on; None when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
