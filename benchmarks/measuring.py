"""What benchmarks share: time and memory of a process and its children, and what machine it was.

The standard library alone: every environment has it.
"""

from __future__ import annotations

import hashlib
import os
import platform
import resource
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def measure(run: Callable[[], Path | None]) -> dict[str, Any]:
    """Run and measure: wall_seconds, cpu_seconds (user and system, all processes), peak_mib of the largest process.

    `run` returns the `.bin` that it wrote, of which num_bytes and sha256 are told, or None.
    """
    wall, cpu = time.perf_counter(), _cpu_seconds()
    written = run()
    measured = {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": _cpu_seconds() - cpu,
                "peak_mib": _peak_kib() / 1024, "num_bytes": None, "sha256": None}
    if written is None:
        return measured
    with open(written, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return measured | {"num_bytes": written.stat().st_size, "sha256": digest}


def describe_machine() -> str:
    """Processor, usable cores, system and Python."""
    cpu_info = Path("/proc/cpuinfo")
    models = [line.partition(":")[2].strip() for line in cpu_info.read_text().splitlines()
              if line.startswith("model name")] if cpu_info.is_file() else []
    return (f"{models[0] if models else platform.machine()}, {len(os.sched_getaffinity(0))} cores, "
            f"{platform.system()}, Python {platform.python_version()}")


def versions_of(*packages: str) -> str:
    """The installed versions of packages, as a list in words."""
    return ", ".join(f"{package} {_version(package)}" for package in packages)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "(not installed)"


def _cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _peak_kib() -> int:
    """Peak memory of the largest of this process and its children."""
    # ru_maxrss of a process starts with what its parent had before exec; VmHWM does not.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    own = int(status.partition("VmHWM:")[2].split()[0])
    return max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)
