"""How far the studies of a work folder are, while they run: on this machine or as Slurm jobs.

Nothing is asked of the programs that run: artifacts, leases, logs and metrics.jsonl on disk tell, and Slurm's queue
where jobs were submitted.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from statistics import median
from typing import Any

from evaluation.report.cost import GPU_STAGES
from megatron_ext.artifacts import is_finished
from megatron_ext.config import RunConfig
from megatron_ext.errors import UserError
from megatron_ext.lease import current_holder
from megatron_ext.parts import parts_of
from megatron_ext.progress import PROGRESS_LINE, format_seconds
from megatron_ext.settings import validate
from megatron_ext.study.arms import RefusedArm, narrowed, refuse_pointless
from megatron_ext.study.config import StudyConfig
from megatron_ext.study.cost import Forecast, trunk_of
from megatron_ext.study.jobs import plan_jobs
from megatron_ext.study.logs import last_error, last_lines, tells_error
from megatron_ext.study.nodes import Node
from megatron_ext.study.plan import PlannedStudy
from megatron_ext.study.report_input import num_devices
from megatron_ext.study.reporting import STUDIES, study_nodes
from megatron_ext.study.runner import seconds_run
from megatron_ext.study.site import read_site
from megatron_ext.study.status import LEDGER, JobState, job_states, read_queue
from megatron_ext.study.submission import site_file

RUNNING, FAILED, DONE, WAITING, REFUSED, LEFT_OUT = "running", "failed", "done", "not started", "refused", "left out"
SETTLED = (DONE, REFUSED, LEFT_OUT)
_TOLD_LINES = 3
_RECENT = 50
"""Iterations whose median speed is that of a run."""


@dataclass(frozen=True)
class Training:
    """What a run has told of its training so far."""

    iteration: int
    train_iters: int
    losses: tuple[float, ...]
    """Of every iteration, nats a token."""
    tokens_per_second: float | None
    tokens_left: int


@dataclass(frozen=True)
class StageStatus:
    """How far one stage is."""

    name: str
    state: str
    """done, running, pending (in Slurm's queue), failed, stopped (the same command goes on), refused (a run that would
    show nothing of its own), left out (what needs a refused one), not started."""
    detail: str = ""
    done: int | None = None
    total: int | None = None
    """What its progress counts: iterations, documents, parts."""
    eta: str = ""
    spent_hours: float = 0.0
    """GPU-hours so far."""
    left_hours: float | None = 0.0
    """GPU-hours to come; None: not known."""
    training: Training | None = None
    last_lines: tuple[str, ...] = ()
    """The end of its log, where it failed."""

    @property
    def stage(self) -> str:
        """The stage that it belongs to: first part of its name."""
        return self.name.split("/")[0]


def load_kept(work: Path, slugs: Sequence[str] = ()) -> list[PlannedStudy]:
    """The studies that were run or submitted in a work folder, all or those named.

    Raises UserError where there are none, or none of a name.
    """
    there = sorted(file.stem for file in (work / STUDIES).glob("*.json"))
    unknown = [slug for slug in slugs if slug not in there]
    if not there or unknown:
        named = f"no study {', '.join(unknown)}" if there else "no study"
        known = f"; there are: {', '.join(there)}" if there else "; tools.run_study and tools.submit_study keep theirs"
        raise UserError(f"{work}: {named} was run or submitted here{known}")
    return [PlannedStudy(*study_nodes(work, slug)) for slug in slugs or there]


def look(studies: Sequence[PlannedStudy], work: Path) -> list[StageStatus]:
    """The status of every stage, in the order in which they run; what studies share is one stage.

    Raises UserError when jobs were submitted and Slurm cannot be asked.
    """
    states = _slurm_states(studies, work) if (work / LEDGER).exists() else {}
    stages: dict[str, _Stage] = {}
    for planned in studies:
        for node in planned.nodes:
            if node.identity not in stages:
                there = (narrowed(node, work) or node) if node.stage == "compare" else node
                stages[node.identity] = _Stage(there, planned.study, planned.nodes, work, states)
    speeds = [stage.training.tokens_per_second for stage in stages.values()
              if stage.training and stage.training.tokens_per_second]
    typical = median(speeds) if speeds else None
    found: dict[str, StageStatus] = {}
    for identity, stage in stages.items():
        needs = [found[parent.identity].state for parent in stage.node.parents if parent.identity in found]
        try:
            found[identity] = stage.status(typical, _is_left_out(stage.node, needs, work))
        except UserError as error:  # damaged, or made from what an input no longer holds
            found[identity] = StageStatus(stage.node.name, FAILED, str(error))
    return list(found.values())


def _is_left_out(node: Node, needs: Sequence[str], work: Path) -> bool:
    """Whether it wants what will never be; a comparison is made of what is there, if that can be compared."""
    if node.stage == "compare":
        return all(state in SETTLED for state in needs) and narrowed(node, work) is None
    return REFUSED in needs or LEFT_OUT in needs


def _slurm_states(studies: Sequence[PlannedStudy], work: Path) -> dict[str, JobState]:
    jobs = plan_jobs(studies, work, read_site(site_file()))
    return job_states(jobs, work, read_queue(work))


@dataclass
class _Stage:
    """One stage as it lies in the work folder."""

    node: Node
    study: StudyConfig
    nodes: Sequence[Node]
    work: Path
    jobs: Mapping[str, JobState] = field(repr=False)

    def status(self, typical_speed: float | None, is_left_out: bool) -> StageStatus:
        """Its status; `typical_speed` (tokens/s) is what other runs of the folder show, for one that has no own."""
        state, detail = self._state()
        state = LEFT_OUT if is_left_out and state != DONE else state
        done, total, eta = self._progress() if state not in (DONE, WAITING) else (None, None, "")
        share = done / total if done is not None and total else 0.0
        shows_log = state == FAILED and self._log is not None
        return StageStatus(
            self.node.name, state, detail, done, total, eta if state == RUNNING else "", self._spent_hours(),
            0.0 if state in SETTLED else self._left_hours(share, typical_speed), self.training,
            last_lines(self._log, _TOLD_LINES) if shows_log and self._log else ())

    def _state(self) -> tuple[str, str]:
        if is_finished(self.node.output(self.work)):
            return DONE, ""
        alive = [self.jobs[key] for key in (f"{self.node.identity}.parts", self.node.identity)
                 if key in self.jobs and self.jobs[key].state != DONE]
        for state in (RUNNING, FAILED, "pending"):
            if found := next((job for job in alive if job.state == state), None):
                return self._refused() or (state, found.detail)
        if holder := current_holder(self.work / "leases" / self.node.label):
            return RUNNING, f"process {holder.pid} on {holder.host}"
        if self._log is None:
            return WAITING, ""
        return self._refused() or ((FAILED, last_error(self._log)) if tells_error(self._log) else
                                   ("stopped", "the same command goes on"))

    def _refused(self) -> tuple[str, str] | None:
        """A run that would have shown nothing of its own is no failure."""
        if self.node.stage != "run":
            return None
        try:
            if all(is_finished(parent.output(self.work)) for parent in self.node.parents):
                refuse_pointless(self.node, self.nodes, self.work)
        except RefusedArm as error:
            return REFUSED, str(error)
        return None

    @cached_property
    def _log(self) -> Path | None:
        """The newest log of the stage."""
        name, identity = self.node.name.replace("/", "."), self.node.identity[:8]
        logs = [log for label in (f"{name}-{identity}", f"{name}-parts-{identity}")
                for log in (self.work / "logs").glob(f"{label}*.log")]
        return max(logs, key=lambda log: log.stat().st_mtime_ns, default=None)

    def _progress(self) -> tuple[int | None, int | None, str]:
        """(done, total, time to the end in words) as far as the stage tells."""
        if self.training:
            left, speed = self.training.tokens_left, self.training.tokens_per_second
            return self.training.iteration, self.training.train_iters, format_seconds(left / speed) if speed else ""
        if parts := parts_of(self.node.output(self.work)):
            newest = max(parts, key=lambda part: part.stat().st_mtime_ns).name.split("-of-")[1]  # others may be older
            return sum(is_finished(part) for part in parts if part.name.endswith(f"-of-{newest}")), int(newest), ""
        lines = last_lines(self._log, _RECENT) if self._log else ()
        found = next((match for line in reversed(lines) if (match := PROGRESS_LINE.search(line))), None)
        if found is None:
            return None, None, ""
        done, total = (int(found[key].replace(",", "")) for key in ("done", "total"))
        return done, total, found["eta"] if done < total else ""

    @cached_property
    def training(self) -> Training | None:
        """Of a run that has begun."""
        metrics = self.node.output(self.work) / "metrics.jsonl"
        if self.node.kind != "run" or not metrics.exists():
            return None
        noted = metrics.stat()
        losses, iteration, speed = _read_metrics(metrics, noted.st_mtime_ns, noted.st_size)
        left = (self._config.train_iters - iteration) * self._config.tokens_per_iteration if iteration else 0
        return Training(iteration, self._config.train_iters, losses, speed, left)

    @cached_property
    def _config(self) -> RunConfig:
        return self._config_of(self.node)

    def _spent_hours(self) -> float:
        if self.node.stage not in GPU_STAGES:
            return 0.0
        return seconds_run(self.node, self.work) * num_devices(self.study, self.node) / 3600

    def _left_hours(self, share: float, typical_speed: float | None) -> float | None:
        """By the speed that runs of this folder have shown; before there is one, and of other stages, the forecast."""
        if self.node.kind == "run" and typical_speed:
            begins = self._config_of(trunk).train_iters if (trunk := trunk_of(self.node)) else 0
            tokens = (self._config.train_iters - begins) * self._config.tokens_per_iteration
            left = self.training.tokens_left if self.training else tokens
            speed = (self.training and self.training.tokens_per_second) or typical_speed
            return left / speed * num_devices(self.study, self.node) / 3600
        try:
            return (1 - share) * Forecast(self.study.cost, self.work).cost(self.node).gpu_hours
        except UserError:
            return None

    def _config_of(self, node: Node) -> RunConfig:
        return validate(RunConfig, node.config(self.work) | {"output": "."}, where=node.name)


@lru_cache(maxsize=256)
def _read_metrics(path: Path, mtime_ns: int, size: int) -> tuple[tuple[float, ...], int, float | None]:
    """(losses, last iteration, median of the recent tokens per second) of a metrics.jsonl as it was at that time."""
    text = path.read_text(encoding="utf-8").splitlines(keepends=True)
    rows = [json.loads(line) for line in text if line.endswith("\n")]  # one that is being written has no end yet
    trained: list[dict[str, Any]] = [row for row in rows if row["event"] == "train"]
    losses = tuple(math.nan if row["loss"] is None else float(row["loss"]) for row in trained)
    speeds = [row["tokens_per_second"] for row in trained[-_RECENT:] if row["tokens_per_second"]]
    return losses, trained[-1]["iteration"] if trained else 0, median(speeds) if speeds else None
