"""From the nodes of studies to Slurm jobs: scripts, options, dependencies. Nothing is submitted here.

A node is one job; a stage whose work is shared by an array is two: the array and a small job that merges its parts.
The page of a study is one more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from megatron_ext.artifacts import hash_json
from megatron_ext.errors import UserError
from megatron_ext.parts import Part
from megatron_ext.study.config import StudyConfig
from megatron_ext.study.job_settings import ArrayJob, GpuJob, StageJob
from megatron_ext.study.nodes import Inside, Node
from megatron_ext.study.plan import PlannedStudy
from megatron_ext.study.runner import TRAIN, program_arguments
from megatron_ext.study.site import Site

FETCHED_HERE = "model"
"""The stage that is run where studies are submitted: a login node has the network, and checks need the models."""
WITH_THE_PAGE = "compare"
"""The stage that the page's job runs: only then it is known which conditions are there."""
SCRIPTS = {"run": "train", "validate": "import", "merge": "merge_checkpoints"}
"""Stage -> its script below slurm/, where that has another name."""
_OTHER_PROGRAM = ("held_out", "suite_items")
"""Kinds of artifacts whose stage's script runs another program unless it is told."""
MERGE_OF_PARTS = "merge.sbatch"


@dataclass(frozen=True)
class Job:
    """One sbatch call."""

    key: str
    """Unique in the work folder and equal for equal work, so that a later submission finds it."""
    name: str
    """For people, e.g. `rewrite/high parts`."""
    script: str
    """File below slurm/."""
    arguments: tuple[str, ...]
    """What the script is given."""
    options: tuple[str, ...] = ()
    """Options of sbatch, without dependencies and arrays."""
    environment: dict[str, str] = field(default_factory=dict)
    """Variables that the script reads."""
    after: tuple[str, ...] = ()
    """Keys of the jobs that must have succeeded."""
    whatever: tuple[str, ...] = ()
    """Keys of the jobs that must have ended, in whatever way."""
    during: str | None = None
    """Key of the training job that saves, while it runs, the checkpoint that this job reads."""
    output: Path | None = None
    """Folder that it makes; None: the page, whose folder is known when all else is done."""
    node: Node | None = None
    num_parts: int | None = None
    """Tasks of the array; None: no array."""
    max_running: int | None = None
    num_nodes: int = 1
    gpus_per_node: int = 0

    @property
    def awaited(self) -> tuple[str, ...]:
        """Keys of all jobs that it waits for."""
        return (*self.after, *self.whatever, *([self.during] if self.during else []))

    @property
    def label(self) -> str:
        """Name of its log, and of the job in Slurm's lists."""
        return f"{self.name.replace('/', '.').replace(' ', '-')}-{self.key[:8]}"

    def part(self, number: int) -> Path:
        """Folder that a task of the array makes."""
        assert self.output is not None
        assert self.num_parts is not None
        return Part(number, self.num_parts).folder(self.output)


def plan_jobs(studies: Sequence[PlannedStudy], work: Path, site: Site) -> list[Job]:
    """The jobs of all studies, every job after those it waits for; work that studies share is one job.

    Raises UserError when a job asks for more than a node of the site has.
    """
    jobs: dict[str, Job] = {}
    for planned in studies:
        for node in planned.nodes:
            if node.stage not in (FETCHED_HERE, WITH_THE_PAGE) and node.identity not in jobs:
                jobs |= {job.key: job for job in _node_jobs(node, planned.study, work, site)}
        jobs |= {job.key: job for job in [_report_job(planned, work)]}
    return list(jobs.values())


def _node_jobs(node: Node, study: StudyConfig, work: Path, site: Site) -> list[Job]:
    settings = study.jobs.of(node.stage)
    after = tuple(dict.fromkeys(parent.identity for parent in node.parents if parent.stage != FETCHED_HERE))
    arguments = tuple(program_arguments(node, work, work / "configs" / f"{node.label}.json"))
    options, environment, num_nodes, gpus = _resources(node, settings, site)
    if checkpoint := _early_checkpoint(node):
        environment = {"CHECKPOINT": str(checkpoint.node.output(work) / checkpoint.folder)}
        after = tuple(key for key in after if key != checkpoint.node.identity)
    if node.kind in _OTHER_PROGRAM:
        environment = environment | {"PROGRAM": node.program}
    whole = Job(key=node.identity, name=node.name, script=f"{SCRIPTS.get(node.stage, node.stage)}.sbatch",
                arguments=arguments[1:] if node.program == TRAIN else arguments, options=options,
                environment=environment, after=after, during=checkpoint and checkpoint.node.identity,
                output=node.output(work), node=node, num_nodes=num_nodes, gpus_per_node=gpus)
    if not isinstance(settings, ArrayJob) or settings.parts == 1:
        return [whole]
    parts = Job(key=f"{node.identity}.parts", name=f"{node.name} parts", script=whole.script, arguments=arguments,
                options=options, environment={**environment, "NUM_PARTS": str(settings.parts)}, after=after,
                output=whole.output, node=node, num_parts=settings.parts, max_running=settings.max_running,
                gpus_per_node=gpus)
    merge = Job(key=node.identity, name=node.name, script=MERGE_OF_PARTS,
                arguments=(node.program, str(settings.parts), *arguments), options=_options(study.jobs.merge),
                after=(parts.key,), output=whole.output, node=node)
    return [parts, merge]


def _early_checkpoint(node: Node) -> Inside | None:
    """The checkpoint that an export reads, if its run goes on after it."""
    source = node.inputs.get("checkpoint")
    if isinstance(source, Inside) and "/iter_" in node.name and node.stage == "export":  # whose script waits for it
        return source
    return None


def _report_job(planned: PlannedStudy, work: Path) -> Job:
    nodes = [node for node in planned.nodes if node.stage not in (FETCHED_HERE, WITH_THE_PAGE)]
    needed = {parent.identity for node in nodes for parent in node.parents}
    last = tuple(node.identity for node in nodes if node.identity not in needed)
    key = hash_json(["report", planned.study.slug, *last])
    return Job(key=key, name=f"report/{planned.study.slug}", script="report.sbatch",
               arguments=(str(work), planned.study.slug), options=_options(planned.study.jobs.report), whatever=last)


def _resources(node: Node, settings: StageJob, site: Site) -> tuple[tuple[str, ...], dict[str, str], int, int]:
    """(sbatch options, environment, nodes, GPUs a node) of a node's job."""
    if node.program == TRAIN or node.kind in ("parity", "held_out"):
        per_node = min(node.processes, site.processes_per_node)
        if node.processes % per_node:
            raise UserError(f"{node.name}: {node.processes} processes (data_parallel_size x tensor x pipeline) do not "
                            f"fill nodes of {per_node}; choose a multiple of {per_node}")
        num_nodes, gpus = node.processes // per_node, min(per_node, site.gpus_per_node)
        environment = {"NUM_PROCESSES_PER_NODE": str(per_node)}
    else:
        num_nodes, environment = 1, {}
        gpus = settings.gpus if isinstance(settings, GpuJob) and site.gpus_per_node else 0
    if gpus > site.gpus_per_node:
        raise UserError(f"jobs.{node.stage}.gpus = {gpus}: a node has {site.gpus_per_node} GPUs ({site.file}); an "
                        "engine cannot span nodes")
    options = [f"--nodes={num_nodes}", *([f"--gpus-per-node={gpus}"] if gpus else []), *_options(settings)]
    return tuple(options), environment, num_nodes, gpus


def _options(settings: StageJob) -> tuple[str, ...]:
    return (*([f"--time={settings.time}"] if settings.time else []), *settings.options)
