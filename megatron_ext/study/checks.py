"""What can be wrong with a submission, found before any job starts, all at once."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from megatron_ext.artifacts import is_finished
from megatron_ext.errors import UserError
from megatron_ext.study.jobs import Job
from megatron_ext.study.nodes import Inside, Node
from megatron_ext.study.plan import PlannedStudy, examine
from megatron_ext.study.site import CHECK_SITE, Site

NOTHING_SUBMITTED = "nothing was submitted"


def check_places(studies: Sequence[PlannedStudy], work: Path, site: Site) -> None:
    """Raise one UserError that lists every place that is missing or cannot be written, before models are fetched."""
    findings = examine(studies, work)
    findings.problems[:0] = [*_site_problems(site, work), *missing_corpora(studies)]
    findings.refuse(NOTHING_SUBMITTED)


def check_studies(studies: Sequence[PlannedStudy], jobs: Sequence[Job], work: Path) -> None:
    """Raise one UserError that lists every problem of the studies whose models are fetched, with its mend."""
    findings = examine(studies, work)
    findings.problems += _checkpoint_problems(jobs, work)
    findings.refuse(NOTHING_SUBMITTED)


def missing_corpora(studies: Sequence[PlannedStudy]) -> Iterator[str]:
    """One line for each corpus that is not there."""
    for planned in studies:
        path = planned.study.corpus.path
        if not path.exists():
            yield f"{planned.study.name}: corpus.path {path} does not exist"


def _site_problems(site: Site, work: Path) -> Iterator[str]:
    done = subprocess.run(["bash", str(CHECK_SITE)], env={**os.environ, "SITE": str(site.file)}, capture_output=True,
                          text=True)
    told = [line.removeprefix("error: ") for line in done.stderr.splitlines()]
    yield from told if done.returncode else []
    if problem := _unwritable(work):
        yield f"--work {work} cannot be written ({problem}): choose a folder that is yours and that all nodes share"


def _unwritable(folder: Path) -> str | None:
    """Why nothing can be written there; a folder that is not there yet is tried above."""
    place = folder
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        return f"{place} is no folder"
    try:
        with tempfile.TemporaryFile(dir=place):
            return None
    except OSError as error:
        return os.strerror(error.errno or 0)


def _checkpoint_problems(jobs: Sequence[Job], work: Path) -> Iterator[str]:
    """Checkpoints that a finished run no longer has, though they are to be exported."""
    for job in jobs:
        source = job.node.inputs.get("checkpoint") if job.node else None
        if isinstance(source, Inside) and _is_lost(source, job.node, work):
            yield (f"{job.name}: the finished run {source.node.output(work)} did not keep {source.folder}; "
                   "evaluation.checkpoints must be set before a run starts")


def _is_lost(source: Inside, export: Node | None, work: Path) -> bool:
    run = source.node.output(work)
    with suppress(UserError):
        return (is_finished(run) and not is_finished(run / source.folder)
                and export is not None and not is_finished(export.output(work)))
    return False
