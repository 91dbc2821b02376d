"""What can be wrong with a submission, found before any job starts, all at once."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from megatron_ext.study.plan import PlannedStudy, examine
from megatron_ext.study.site import CHECK_SITE, Site

NOTHING_SUBMITTED = "nothing was submitted"


def check_places(studies: Sequence[PlannedStudy], work: Path, site: Site) -> None:
    """Raise one UserError that lists every place that is missing or cannot be written, before models are fetched."""
    findings = examine(studies, work)
    findings.problems[:0] = [*_site_problems(site, work), *missing_corpora(studies)]
    findings.refuse(NOTHING_SUBMITTED)


def check_studies(studies: Sequence[PlannedStudy], work: Path) -> None:
    """Raise one UserError that lists every problem of the studies whose models are fetched, with its mend."""
    examine(studies, work).refuse(NOTHING_SUBMITTED)


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
