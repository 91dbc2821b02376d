"""What submit_study prints: the graph with its cost, and its state."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from megatron_ext.errors import UserError
from megatron_ext.study.cost import Cost, Forecast, describe_blend, trunk_of
from megatron_ext.study.jobs import MERGE_OF_PARTS, Job
from megatron_ext.study.nodes import Node
from megatron_ext.study.plan import Findings, PlannedStudy
from megatron_ext.study.progress import goes_on_from, made_again
from megatron_ext.study.status import JobState

_CHECKPOINT = re.compile(r"/iter_\d+$")
_SHOWN_PARENTS = 3


def describe_cost(studies: Sequence[PlannedStudy], jobs: Sequence[Job], states: Mapping[str, JobState],
                  work: Path) -> Iterator[str]:
    """The graph: resources, what is waited for, GPU-hours, disk, and the arithmetic; then the sums.

    An array and its merge are one line, and so are the checkpoints of a run.
    """
    forecasts = {node.identity: Forecast(planned.study.cost, work)
                 for planned in reversed(studies) for node in planned.nodes}
    costs = {job.key: _job_cost(job, forecasts) for job in jobs}
    titles = _titles(studies, jobs)
    groups: dict[str, list[Job]] = {}
    for job in jobs:
        groups.setdefault(_CHECKPOINT.sub("/iter_*", titles[job.key]).removesuffix(" parts"), []).append(job)
    names = {job.key: name for name, members in groups.items() for job in members}
    width = max(map(len, groups))
    for name, members in groups.items():
        yield from _group_lines(name, width, members, [costs[job.key] for job in members], names, states)
        if members[0].node and members[0].node.stage == "run":
            yield f"{'':{width}}  = {_blend(members[0].node, forecasts)}"
    left = sum(costs[job.key].gpu_hours for job in jobs if states[job.key].state != "done")
    total = sum(cost.gpu_hours for cost in costs.values())
    yield from _trunk_lines(jobs, costs)
    yield (f"{len(jobs)} jobs, {_hours(total)} GPU-hours ({_hours(left)} of them still to do), "
           f"{_size(sum(cost.disk_bytes for cost in costs.values()))} of disk; assumptions: `cost` of the study file")


def _trunk_lines(jobs: Sequence[Job], costs: Mapping[str, Cost]) -> Iterator[str]:
    """For each trunk: what it and its branches cost, beside as many runs from the base model."""
    hours = {job.node.identity: costs[job.key].gpu_hours for job in jobs if job.node and job.node.stage == "run"}
    branches: dict[str, list[Node]] = {}
    for job in jobs:
        if job.node and (trunk := trunk_of(job.node)):
            branches.setdefault(trunk.identity, []).append(job.node)
    for trunk, runs in branches.items():
        alone, each = hours.get(trunk, 0.0), [hours[run.identity] for run in runs]
        yield (f"trunk: {_hours(alone)} GPU-hours once, {len(runs)} branches {_hours(sum(each))}: "
               f"{_hours(alone + sum(each))} together; each from the base model: "
               f"{_hours(len(runs) * alone + sum(each))}")


def describe_plan(studies: Sequence[PlannedStudy], jobs: Sequence[Job], states: Mapping[str, JobState],
                  findings: Findings, work: Path) -> Iterator[str]:
    """What `--dry-run` prints: the cost, what goes on, what is made again and why, and what is not known yet."""
    yield from describe_cost(studies, jobs, states, work)
    nodes = list({node.identity: node for planned in studies for node in planned.nodes}.values())
    yield from (f"{node.name} {where}" for node in nodes if (where := goes_on_from(node, work)))
    yield from made_again(nodes, work)
    yield from (f"not known yet: {unknown}" for unknown in findings.unknown)


def describe_states(studies: Sequence[PlannedStudy], jobs: Sequence[Job],
                    states: Mapping[str, JobState]) -> Iterator[str]:
    """One line a job, then how many are in which state."""
    titles = _titles(studies, jobs)
    width = max(map(len, titles.values()))
    for job in jobs:
        state = states[job.key]
        yield f"{titles[job.key]:{width}}  {state.state:11}  {state.detail}".rstrip()
    counts = Counter(states[job.key].state for job in jobs)
    yield ", ".join(f"{number} {state}" for state, number in counts.items())


def _job_cost(job: Job, forecasts: Mapping[str, Forecast]) -> Cost:
    """A merge costs nothing beside its array, which is the one that is counted."""
    if job.node is None or job.script == MERGE_OF_PARTS:
        return Cost()
    try:
        return forecasts[job.node.identity].cost(job.node)
    except UserError as error:
        return Cost(arithmetic=str(error))


def _blend(run: Node, forecasts: Mapping[str, Forecast]) -> str:
    try:
        return describe_blend(forecasts[run.identity].blend(run))
    except UserError as error:
        return f"with the sizes that are expected (cost.rewrite_yield) this run would be refused: {error}"


def _titles(studies: Sequence[PlannedStudy], jobs: Sequence[Job]) -> dict[str, str]:
    """Job key -> name; where several studies are shown, the study stands before what is not shared by all."""
    owners: dict[str, list[str]] = {}
    for planned in studies:
        for node in planned.nodes:
            owners.setdefault(node.identity, []).append(planned.study.slug)

    def title(job: Job) -> str:
        mine = owners[job.node.identity] if job.node else []
        return job.name if not mine or len(mine) == len(studies) else f"{'+'.join(mine)}: {job.name}"

    return {job.key: title(job) for job in jobs}


def _group_lines(name: str, width: int, members: Sequence[Job], costs: Sequence[Cost], names: Mapping[str, str],
                 states: Mapping[str, JobState]) -> Iterator[str]:
    hours, disk = sum(cost.gpu_hours for cost in costs), sum(cost.disk_bytes for cost in costs)
    parents = [parent for parent in dict.fromkeys(names[key] for job in members for key in job.awaited)
               if parent != name]
    shown = ", ".join(parents[:_SHOWN_PARENTS]) + (", …" if len(parents) > _SHOWN_PARENTS else "")
    found = Counter(states[job.key].state for job in members)
    state = ", ".join(found) if len(found) == 1 else ", ".join(f"{number} {one}" for one, number in found.items())
    yield (f"{name:{width}}  {_resources(members):>16}  {_hours(hours) if hours else '–':>7} GPU-h  "
           f"{_size(disk):>8}  {state}{f'; after {shown}' if parents else ''}")
    if arithmetic := costs[0].arithmetic:
        times = f"{len(members)} x " if len(members) > 1 and members[0].num_parts is None else ""
        yield f"{'':{width}}  = {times}({arithmetic})" if times else f"{'':{width}}  = {arithmetic}"


def _resources(members: Sequence[Job]) -> str:
    job = members[0]
    one = f"{job.num_nodes} x {job.gpus_per_node} GPU" if job.gpus_per_node else f"{job.num_nodes} node"
    if job.num_parts:
        return f"{job.num_parts} ({one}), merge"
    return one if len(members) == 1 else f"{len(members)} ({one})"


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 10 else f"{hours:.1f}"


def _size(num_bytes: float) -> str:
    if not num_bytes:
        return "–"
    return f"{num_bytes / 1e12:.1f} TB" if num_bytes >= 1e12 else f"{num_bytes / 1e9:,.1f} GB"
