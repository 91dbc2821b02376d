"""How far a submitted study is: what is on disk, what Slurm still has, and what the log of a failed job says.

Artifacts on disk are the truth; Slurm's queue tells what is alive; `jobs.json` in the work folder only remembers which
log belongs to which job.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from megatron_ext.artifacts import is_finished, write_json
from megatron_ext.errors import UserError
from megatron_ext.files import read_json
from megatron_ext.study.jobs import Job
from megatron_ext.study.logs import last_error
from megatron_ext.study.runner import is_up_to_date

LEDGER = "jobs.json"
StateName = Literal["done", "running", "pending", "failed", "not started"]


@dataclass(frozen=True)
class QueueEntry:
    """A job, or a task of an array, that Slurm still has."""

    job_id: str
    """As squeue prints it: `12` or, of an array, `12_3`."""
    state: str
    """Slurm's word, e.g. RUNNING."""
    reason: str
    """Why it waits."""

    @property
    def base_id(self) -> str:
        """The id that dependencies name."""
        return self.job_id.split("_")[0]

    @property
    def task(self) -> int | None:
        """Index in the array."""
        return int(self.job_id.split("_")[1]) if "_" in self.job_id else None


@dataclass(frozen=True)
class JobState:
    """How far a job is."""

    state: StateName
    detail: str = ""
    """Job ids, the reason of waiting, or the error."""
    alive: tuple[QueueEntry, ...] = ()
    """What Slurm still has of it."""
    missing_parts: tuple[int, ...] = field(default=())
    """Parts of an array that are neither finished nor alive."""


def comment(work: Path, key: str) -> str:
    """What a job carries in Slurm, so that squeue tells which one it is."""
    return f"{work}#{key}"


def read_queue(work: Path) -> dict[str, list[QueueEntry]]:
    """Job key -> what Slurm still has of it.

    Raises UserError where squeue cannot be asked.
    """
    lines = call_slurm("squeue", "--noheader", "--array", "--me", "--format=%i|%T|%r|%k").splitlines()
    queue: dict[str, list[QueueEntry]] = {}
    for line in lines:
        job_id, state, reason, about = line.strip().split("|", 3)
        if about.startswith(comment(work, "")) and state != "COMPLETING":
            queue.setdefault(about.removeprefix(comment(work, "")), []).append(QueueEntry(job_id, state, reason))
    return queue


def call_slurm(*command: str, environment: Mapping[str, str] | None = None) -> str:
    """Output of a Slurm command, run with this environment (default: this program's).

    Raises UserError with Slurm's own words when it fails.
    """
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
    except FileNotFoundError:
        raise UserError(f"{command[0]} was not found: Slurm is not installed here; tools.run_study runs the same graph "
                        "on one machine") from None
    if done.returncode:
        raise UserError(f"{command[0]}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def read_ledger(work: Path) -> dict[str, Any]:
    """Job key -> {name, job_id, log} of its last submission."""
    return read_json(work / LEDGER) or {}


def note_submission(work: Path, job: Job, job_id: str, log: Path) -> None:
    """Remember a submitted job, atomically."""
    write_json(work / LEDGER, {**read_ledger(work), job.key: {"name": job.name, "job_id": job_id, "log": str(log)}})


def job_states(jobs: Sequence[Job], work: Path, queue: Mapping[str, Sequence[QueueEntry]]) -> dict[str, JobState]:
    """The state of every job by key.

    Raises UserError when an input changed under a finished artifact.
    """
    ledger, states = read_ledger(work), {}
    done = {job.key for job in jobs if job.node is not None and is_up_to_date(job.node, work)}
    for job in jobs:
        alive = tuple(queue.get(job.key, ()))
        if job.key.removesuffix(".parts") in done or _is_made(job, work, done):
            states[job.key] = JobState("done", alive=alive)
        else:
            states[job.key] = _unfinished(job, alive, ledger.get(job.key), states)
    return states


def _is_made(job: Job, work: Path, done: set[str]) -> bool:
    """Whether all parts of an array, or the page of a study whose stages are all done, are there."""
    if job.num_parts is not None:
        return all(is_finished(job.part(number)) for number in range(job.num_parts))
    return job.output is None and done.issuperset(job.whatever) and report_is_made(job)


def report_is_made(job: Job) -> bool:
    """Whether the page of a study is made from what its stages now hold."""
    from megatron_ext.study.reporting import comparisons_of_what_is_there, is_kept, study_report

    work, slug = Path(job.arguments[0]), job.arguments[1]
    return (is_kept(work, slug)
            and all(is_up_to_date(node, work) for node in comparisons_of_what_is_there(work, slug))
            and is_up_to_date(study_report(work, slug), work))


def _unfinished(job: Job, alive: tuple[QueueEntry, ...], noted: dict[str, Any] | None,
                states: Mapping[str, JobState]) -> JobState:
    missing: tuple[int, ...] = ()
    if job.num_parts is not None:
        living = {entry.task for entry in alive}
        missing = tuple(number for number in range(job.num_parts)
                        if number not in living and not is_finished(job.part(number)))
    if alive:
        running = [entry for entry in alive if entry.state != "PENDING"]
        shown = running or list(alive)
        reason = "" if running else f", {shown[0].reason}"
        lost = f"; {len(missing)} of {job.num_parts} parts failed" if missing else ""
        return JobState("running" if running else "pending", f"job {_ids(shown)}{reason}{lost}", alive, missing)
    if noted is None:
        return JobState("not started", missing_parts=missing)
    return _ended(job, noted, missing, states)


def _ended(job: Job, noted: dict[str, Any], missing: tuple[int, ...], states: Mapping[str, JobState]) -> JobState:
    """A job that Slurm no longer has and that did not make its artifact."""
    logs = [Path(noted["log"].replace("%a", str(number))) for number in missing] if missing else [Path(noted["log"])]
    written = [log for log in logs if log.exists()]
    if not written:
        unfinished = [states[key] for key in job.awaited if key in states and states[key].state != "done"]
        why = "what it waits for is not finished" if unfinished else "it ended before it wrote a log"
        return JobState("failed", f"job {noted['job_id']} never ran: {why}", missing_parts=missing)
    parts = f"{len(missing)} of {job.num_parts} parts; " if job.num_parts else ""
    return JobState("failed", f"{parts}{last_error(written[0])} ({written[0]})", missing_parts=missing)


def _ids(entries: Sequence[QueueEntry]) -> str:
    base = entries[0].base_id
    return base if len(entries) == 1 else f"{base} ({len(entries)} tasks)"
