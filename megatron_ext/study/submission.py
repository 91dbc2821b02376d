"""Submitting studies to Slurm: what is not finished and not alive, with its dependencies.

Safe to repeat at any time: every job carries its key as its comment, so that squeue tells what is alive even when this
program was killed between two jobs.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from megatron_ext.lease import lease
from megatron_ext.study.jobs import FETCHED_HERE, Job
from megatron_ext.study.plan import PlannedStudy
from megatron_ext.study.reporting import keep_study
from megatron_ext.study.runner import run_nodes, write_config
from megatron_ext.study.site import CHECKOUT, SITE_FILE, Site
from megatron_ext.study.status import JobState, call_slurm, comment, note_submission

_TRIED = "--test-only"
_OUTER_JOB = ("SLURM_", "SLURMD_", "PMI_", "PMIX_")
_OF_THE_SITE = ("SLURM_CONF", "SLURM_CLUSTERS")
_READ_BY_SCRIPTS = ("CHECKPOINT", "TRAIN_JOB", "NUM_PARTS", "NUM_PROCESSES_PER_NODE")
_LEASE = ".submission.lease"


@dataclass(frozen=True)
class Submitted:
    """A job that was submitted."""

    job: Job
    job_id: str
    parts: tuple[int, ...] = ()
    """Tasks of an array that were submitted."""


def fetch_models(studies: Sequence[PlannedStudy], work: Path) -> None:
    """Fetch the models of the studies here, where there is a network."""
    nodes = {node.identity: node for planned in studies for node in planned.nodes if node.stage == FETCHED_HERE}
    run_nodes(list(nodes.values()), work).require_all()


def one_submission(work: Path) -> AbstractContextManager[None]:
    """Hold while looking what is missing and submitting it: a second submission at once finds it submitted."""
    return lease(work / _LEASE, work, wait=True)


def submit_jobs(jobs: Sequence[Job], states: Mapping[str, JobState], work: Path, site: Site) -> list[Submitted]:
    """Submit what is missing; all jobs are tried before the first one is submitted.

    Raises UserError with Slurm's own words when it refuses one.
    """
    missing = [job for job in jobs if _is_missing(job, states[job.key])]
    for options in {_tried_options(job, site) for job in missing}:
        call_slurm(*options)
    ids = {job.key: sorted({entry.base_id for entry in states[job.key].alive}) for job in jobs}
    submitted = []
    for job in missing:
        parts = states[job.key].missing_parts
        awaited = {key: ids[key] for key in job.awaited if states[key].state != "done"}
        job_id = _submit(job, parts, awaited, work, site)
        ids[job.key] = [*ids[job.key], job_id]
        submitted.append(Submitted(job, job_id, parts))
    return submitted


def keep_studies(studies: Sequence[PlannedStudy], jobs: Sequence[Job], work: Path) -> None:
    """Write what the jobs read: the studies, and each program's settings."""
    for planned in studies:
        keep_study(planned.study, planned.nodes, work)
    for job in jobs:
        if job.node is not None:
            write_config(job.node, work)


def _is_missing(job: Job, state: JobState) -> bool:
    if job.num_parts is not None and state.state != "done":
        return bool(state.missing_parts)
    return state.state in ("failed", "not started")


def _submit(job: Job, parts: Sequence[int], awaited: Mapping[str, Sequence[str]], work: Path, site: Site) -> str:
    """Submit one job that waits for others (key -> job ids); returns its id. Its log is named after it."""
    logs = work / "logs"
    logs.mkdir(parents=True, exist_ok=True)
    name = f"{job.label}.%A_%a.log" if job.num_parts else f"{job.label}.%j.log"
    pattern = str(logs).replace("%", "%%") + f"/{name}"
    options = [f"--output={pattern}", f"--job-name={job.label}", f"--comment={comment(work, job.key)}"]
    if job.num_parts is not None:
        options.append(f"--array={_ranges(parts)}" + (f"%{job.max_running}" if job.max_running else ""))
    succeeded, ended = ([job_id for key in keys for job_id in awaited.get(key, [])]
                        for keys in (job.after, job.whatever))
    training = awaited.get(job.during or "", [])
    kinds = (("afterok", succeeded), ("afterany", ended), ("after", training))
    dependencies = [f"{kind}:{':'.join(ids)}" for kind, ids in kinds if ids]
    if dependencies:
        options += [f"--dependency={','.join(dependencies)}", "--kill-on-invalid-dep=yes"]
    environment = {"TRAIN_JOB": training[-1]} if training else {}
    script = CHECKOUT / "slurm" / job.script
    answer = call_slurm("sbatch", "--parsable", *options, *site.sbatch_options, *job.options, "--export=ALL",
                        str(script), *job.arguments, environment=_environment(job, work, site, environment))
    job_id = answer.strip().split(";")[0]  # of several clusters: `id;cluster`
    note_submission(work, job, job_id, logs / name.replace("%A", job_id).replace("%j", job_id))
    return job_id


def _environment(job: Job, work: Path, site: Site, more: Mapping[str, str]) -> dict[str, str]:
    """What the job finds: this program's variables, without those of a job that it may run in, and the job's own.

    They are not listed in `--export`, where a comma would end a value.
    """
    outer = {name: value for name, value in os.environ.items()
             if (not name.startswith(_OUTER_JOB) and name not in _READ_BY_SCRIPTS) or name in _OF_THE_SITE}
    return {**outer, "PROJECT": str(CHECKOUT), "SITE": str(site.file), "PROVENANCE": str(work), **job.environment,
            **more}


def _tried_options(job: Job, site: Site) -> tuple[str, ...]:
    """A command that asks Slurm whether it could run such a job, without its arguments: many jobs ask the same."""
    return ("sbatch", _TRIED, *site.sbatch_options, *job.options, str(CHECKOUT / "slurm" / job.script))


def _ranges(parts: Sequence[int]) -> str:
    """`0-3,7` for [0, 1, 2, 3, 7]."""
    spans: list[list[int]] = []
    for part in parts:
        if spans and spans[-1][1] == part - 1:
            spans[-1][1] = part
        else:
            spans.append([part, part])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)


def site_file() -> Path:
    """The site file that SITE names, else the checkout's."""
    return Path(os.environ.get("SITE") or SITE_FILE)
