"""What lies in a work folder and belongs to no study any more."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_ext.artifacts import delete_artifact, is_finished
from megatron_ext.errors import UserError
from megatron_ext.lease import LEASE, current_holder
from megatron_ext.manifest import is_current, read_manifest
from megatron_ext.study.checks import missing_corpora
from megatron_ext.study.config import load_study
from megatron_ext.study.graph import build_graph
from megatron_ext.study.nodes import STAGES
from megatron_ext.study.plan import PlannedStudy
from megatron_ext.study.reporting import STUDIES, folders_file

_NAMED = re.compile(r"(?P<name>.+-[0-9a-f]{8})(\.partial|\.parts)?")


@dataclass(frozen=True)
class Leftover:
    """A folder that a study once made."""

    path: Path
    stage: str
    num_bytes: int
    kept_because: str | None
    """Why it must stay; None: it can go."""


def used_folders(work: Path, named: Sequence[PlannedStudy]) -> dict[str, set[Path]]:
    """Study -> the folders that it uses: of the named ones as they are now, of those that the work folder remembers as
    they were run last.

    Raises UserError where it cannot be told: no study is known, or a corpus is not there, by whose bytes folders are
    named.
    """
    if not work.is_dir():
        raise UserError(f"{work} does not exist: name the work folder of a study")
    used = {planned.study.name: _computed(planned, work) for planned in named}
    for file in sorted((work / STUDIES).glob("*.json")):
        study = load_study(file, [])
        if study.name not in used:
            used[study.name] = _noted(file, work) or _computed(PlannedStudy(study, build_graph(study)), work)
    if not used:
        raise UserError(f"{work} remembers no study ({STUDIES}/*.json): name the study files whose work is kept")
    return used


def _computed(planned: PlannedStudy, work: Path) -> set[Path]:
    if missing := list(missing_corpora([planned])):
        raise UserError(f"{missing[0]}: which folders the study uses cannot be told without it")
    return {node.output(work) for node in planned.nodes}


def _noted(study_file: Path, work: Path) -> set[Path]:
    """Empty when a version that kept no list has run the study."""
    file = folders_file(study_file)
    return {work / line for line in file.read_text(encoding="utf-8").splitlines()} if file.exists() else set()


def find_leftovers(work: Path, used: Iterable[Path]) -> list[Leftover]:
    """Every folder of a stage that is not used, in the order of the stages; what must stay says why."""
    kept, found = set(used), []
    for stage in STAGES:
        for folder, output in _stage_folders(work / stage):
            if output not in kept:
                found.append(Leftover(folder, stage, _size(folder), _why_it_stays(folder, output)))
    return found


def delete(leftovers: Sequence[Leftover]) -> None:
    """Delete them, each so that what is left of it at any moment is not taken for whole."""
    for leftover in leftovers:
        if is_finished(leftover.path):
            delete_artifact(leftover.path)
        else:
            shutil.rmtree(leftover.path)


def _stage_folders(folder: Path) -> Iterator[tuple[Path, Path]]:
    """(folder, the artifact that it is, or is the unfinished work or the parts of) of a stage: by their names."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not path.is_dir() or path.is_symlink():
            continue
        if match := _NAMED.fullmatch(path.name):
            yield path, path.with_name(match["name"])
        else:
            yield from _stage_folders(path)


def _why_it_stays(folder: Path, output: Path) -> str | None:
    for lease in (output.with_name(output.name + LEASE), output / LEASE):
        if holder := current_holder(lease):
            return f"held by {holder}"
    try:
        manifest = read_manifest(folder)
    except UserError as error:
        return str(error)
    if manifest is not None and not is_current(manifest):
        return "an older version has made it; delete it by hand if it is not wanted"
    return None


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
