"""What lies in a work folder and belongs to no study any more."""

from __future__ import annotations

import fcntl
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_ext.artifacts import delete_artifact, is_finished
from megatron_ext.errors import UserError
from megatron_ext.manifest import is_current, read_manifest
from megatron_ext.study.config import load_study
from megatron_ext.study.graph import STAGES, build_graph
from megatron_ext.study.plan import PlannedStudy
from megatron_ext.study.reporting import STUDIES

_NAMED = re.compile(r"(?P<name>.+)-[0-9a-f]{8}(?P<state>\.partial|\.parts|)")
_LOCKS = ("*.lock", ".lock", "checkpoints/*.lock")
_FOLDERS = (*STAGES, "report")


@dataclass(frozen=True)
class Leftover:
    """A folder that a study once made."""

    path: Path
    stage: str
    num_bytes: int
    kept_because: str | None
    """Why it must stay; None: it can go."""


def kept_studies(work: Path, files: Sequence[Path]) -> list[PlannedStudy]:
    """The studies that the work folder remembers, but those whose files are named: these count as they are now.

    Raises UserError when there is none and no file is named: everything would be left over.
    """
    if not work.is_dir():
        raise UserError(f"{work} does not exist: name the work folder of a study")
    named = {load_settings_name(file) for file in files}
    kept = [load_study(file, []) for file in sorted((work / STUDIES).glob("*.json"))]
    if not kept and not files:
        raise UserError(f"{work} holds no {STUDIES}/*.json: name the study files whose work is kept")
    return [PlannedStudy(study, build_graph(study)) for study in kept if study.name not in named]


def load_settings_name(file: Path) -> str:
    """The name of the study in a file."""
    return load_study(file, []).name


def find_leftovers(work: Path, studies: Sequence[PlannedStudy]) -> list[Leftover]:
    """Every folder of a stage that no study uses, in the order of the stages; what must stay says why."""
    used = {node.output(work) for planned in studies for node in planned.nodes}
    found = []
    for stage in _FOLDERS:
        for folder in _stage_folders(work / stage):
            match = _NAMED.fullmatch(folder.name)
            assert match is not None
            output = folder.with_name(folder.name.removesuffix(match["state"]) if match["state"] else folder.name)
            if output not in used and stage != "report":
                found.append(Leftover(folder, stage, _size(folder), _why_it_stays(folder)))
    return found


def delete(leftovers: Sequence[Leftover]) -> None:
    """Delete them, each so that what is left of it at any moment is not taken for whole."""
    for leftover in leftovers:
        if is_finished(leftover.path):
            delete_artifact(leftover.path)
        else:
            shutil.rmtree(leftover.path)


def _stage_folders(folder: Path) -> Iterator[Path]:
    """The artifacts of a stage, finished and not: folders named by what they were asked for."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not path.is_dir() or path.is_symlink():
            continue
        if _NAMED.fullmatch(path.name):
            yield path
        else:
            yield from _stage_folders(path)


def _why_it_stays(folder: Path) -> str | None:
    if any(_is_held(lock) for pattern in _LOCKS for lock in folder.glob(pattern)):
        return "a process holds it"
    try:
        manifest = read_manifest(folder)
    except UserError as error:
        return str(error)
    if manifest is not None and not is_current(manifest):
        return "an older version has made it; delete it by hand if it is not wanted"
    return None


def _is_held(lock: Path) -> bool:
    try:
        with open(lock) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())
