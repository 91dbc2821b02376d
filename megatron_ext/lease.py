"""One writer at a time: leases.

A lease is a file that says who writes at a place: host, process, Slurm job. Its holder renews it while it lives, so a
lease that is no longer renewed, or whose process is known to be dead, is taken over. It needs no locks of the file
system, which NFS and Lustre may lack, only that of two processes that create one file exactly one succeeds. Because it
lies at the place itself, it is found through links and `..`; because a thread renews it, a process that was forked from
the holder and outlives it does not.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Event, Thread
from typing import Any

from megatron_ext.errors import UserError
from megatron_ext.files import replacing
from megatron_ext.processes import start_of

LEASE = ".lease"
RENEWAL_SECONDS = 10.0
STALE_SECONDS = 90.0  # longer than a network file system shows old attributes
GRACE_SECONDS = 3.0  # a killed launcher's children take a moment to die …
LEAVING_SECONDS = 1800.0  # … unless they are allowed to save first
_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Holder:
    """Who holds a lease."""

    host: str
    machine: str
    """Tells kernels and containers apart: process ids mean something only within one."""
    pid: int
    started: str | None
    """When the process started, in clock ticks since boot: process ids are used again."""
    parent: int
    parent_started: str | None
    """Its launcher: when that has died, the process is about to leave."""
    job: str | None
    """Slurm cluster and job."""
    restart: int
    """How often Slurm has requeued the job."""
    since: str

    def __str__(self) -> str:
        job = f", Slurm job {self.job.split('/')[-1]}" if self.job else ""
        return f"process {self.pid} on {self.host}{job}, since {self.since}"


@contextmanager
def lease(path: Path, place: Path, *, wait: bool = False) -> Iterator[None]:
    """Hold the lease `path`, with which one writes at `place`.

    Args:
        wait: wait for its holder, however long; else only to learn whether it lives.

    Raises UserError that says who holds it. A holder that loses its lease, because it was stopped for so long that it
    was taken for dead, ends at once: another writes at the place.
    """
    text = json.dumps(asdict(_this_process()))
    _acquire(path, place, text, wait)
    ended, owner = Event(), os.getpid()
    Thread(target=_renew, args=(path, place, text, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        if os.getpid() == owner and _read(path) == text:
            path.unlink(missing_ok=True)


def current_holder(path: Path) -> Holder | None:
    """Who holds a lease, as far as one look can tell; of a process elsewhere, that it has renewed it lately."""
    holder, renewed_ns = _holder(_read(path) or ""), _renewed_ns(path)
    if holder is None or renewed_ns is None or _is_dead(holder):
        return None
    is_fresh = time.time() - renewed_ns / 1e9 < STALE_SECONDS
    return holder if _is_here(holder) or is_fresh else None


def _acquire(path: Path, place: Path, text: str, wait: bool) -> None:
    watched = _Watch(path)
    told = False
    while not _create(path, text):
        holder, is_dead = watched.look()
        if is_dead and _take_over(path, watched.text, text):
            return
        if is_dead or holder is None:
            time.sleep(_POLL_SECONDS / 10)
            continue
        if not wait and watched.is_known_to_stay():
            raise UserError(f"{place} is being made by another process ({holder}); wait for it or stop it")
        if not told and (wait or _is_leaving(holder)):
            print(f"waiting for {place}, which another process makes ({holder})", flush=True)
            told = True
        time.sleep(_POLL_SECONDS)


class _Watch:
    """What a lease shows to one who wants it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.text: str | None = None
        self._renewed_ns: int | None = None
        self._is_renewed = False
        self._since = time.monotonic()
        self._first_seen = self._since

    def look(self) -> tuple[Holder | None, bool]:
        """(who holds it, None when nobody or it cannot be read; whether it can be taken over)."""
        text, renewed_ns = _read(self._path), _renewed_ns(self._path)
        now = time.monotonic()
        if text != self.text:
            self.text, self._renewed_ns, self._is_renewed = text, renewed_ns, False
            self._since = self._first_seen = now
        elif renewed_ns != self._renewed_ns:
            self._renewed_ns, self._is_renewed, self._since = renewed_ns, True, now
        if text is None:
            return None, False
        holder = _holder(text)
        if holder is None:  # torn: its writer died between creating and writing it
            return None, now - self._since > GRACE_SECONDS
        return holder, _is_dead(holder) or (not _is_here(holder) and now - self._since > STALE_SECONDS)

    def is_known_to_stay(self) -> bool:
        """Whether the holder is seen to live, and not about to leave; asked when it can not be taken over."""
        holder = _holder(self.text or "")
        if holder is None or not _is_here(holder):
            return self._is_renewed
        patience = LEAVING_SECONDS if _is_leaving(holder) else GRACE_SECONDS
        return time.monotonic() - self._first_seen > patience


def _create(path: Path, text: str) -> bool:
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    except FileExistsError:
        return False
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    return True


def _take_over(path: Path, old: str | None, text: str) -> bool:
    """Replace a dead holder's lease; of those who try at once one succeeds."""
    claim = path.with_name(f"{path.name}.{hashlib.sha256((old or '').encode()).hexdigest()[:12]}")
    if not _create(claim, text):
        with suppress(FileNotFoundError):
            if time.time() - claim.stat().st_mtime > STALE_SECONDS:  # who claimed it died at once
                claim.unlink()
        return False
    try:
        if _read(path) != old:
            return False
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return True
    finally:
        claim.unlink(missing_ok=True)


def _renew(path: Path, place: Path, text: str, ended: Event) -> None:
    while not ended.wait(RENEWAL_SECONDS):
        with suppress(OSError):  # of a file system that is away for a moment
            if _read(path) == text:
                os.utime(path)
            elif not ended.is_set():
                print(f"error: this process was taken for dead, and another writes to {place} now: it ends here. Run "
                      "the same command again to go on", file=sys.stderr, flush=True)
                os._exit(2)


def _read(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None


def _renewed_ns(path: Path) -> int | None:
    try:
        with open(path, "rb") as file:  # opened, not only looked at: NFS then asks its server
            return os.fstat(file.fileno()).st_mtime_ns
    except FileNotFoundError:
        return None


def _holder(text: str) -> Holder | None:
    try:
        values: Mapping[str, Any] = json.loads(text)
        return Holder(**values)
    except (ValueError, TypeError):
        return None


def _this_process() -> Holder:
    job = os.environ.get("SLURM_JOB_ID")
    return Holder(
        host=platform.node(), machine=_machine(), pid=os.getpid(), started=start_of(os.getpid()),
        parent=os.getppid(), parent_started=start_of(os.getppid()),
        job=f"{os.environ.get('SLURM_CLUSTER_NAME', '')}/{job}" if job else None,
        restart=int(os.environ.get("SLURM_RESTART_COUNT") or 0), since=time.strftime("%Y-%m-%dT%H:%M:%S%z"))


def _is_here(holder: Holder) -> bool:
    return (holder.host, holder.machine) == (platform.node(), _machine())


def _is_dead(holder: Holder) -> bool:
    """Whether the holder is known to be dead; of one elsewhere only its renewals tell, or that Slurm requeued it."""
    if _is_here(holder):
        return not _is_alive(holder)
    here = _this_process()
    return here.job is not None and here.job == holder.job and here.restart > holder.restart


def _is_alive(holder: Holder) -> bool:
    started = start_of(holder.pid)
    if started is not None or Path("/proc/self/stat").exists():
        return started == holder.started
    try:
        os.kill(holder.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _is_leaving(holder: Holder) -> bool:
    return _is_here(holder) and start_of(holder.parent) != holder.parent_started


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""
