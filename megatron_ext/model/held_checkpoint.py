"""Checkpoints of a run that goes on, and may delete them while they are read."""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from megatron_ext.artifacts import Artifact, is_finished
from megatron_ext.errors import UserError

_HELD = ".checkpoint"
_CANNOT_LINK = (errno.EXDEV, errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EMLINK)


class CheckpointGone(UserError):
    """A run has deleted the checkpoint."""


def named_checkpoint(path: Path) -> Path:
    """The checkpoint itself, where `path` is the file `<run>/checkpoints/latest` that names one."""
    return path.parent / path.read_text(encoding="utf-8").strip() if path.is_file() else path


@contextmanager
def held(checkpoint: Path, folder: Path, name: str = _HELD) -> Iterator[Path]:
    """A copy of the checkpoint for the `with` block, made of hard links in `folder`: its run may delete the original.

    Links need no agreement with the run and no space, and work on NFS and Lustre too. On two file systems there are
    none: then it is the checkpoint itself, and a deletion is an error of whoever reads it.
    """
    copy = folder / name
    shutil.rmtree(copy, ignore_errors=True)  # left by an interrupted process
    try:
        yield copy if _link_files(checkpoint, copy) else checkpoint
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def new_checkpoints(run: Path, poll_seconds: float) -> Iterator[Path]:
    """Each checkpoint of a run, those that are there and those to come, until the run is finished."""
    seen: set[Path] = set()
    while True:
        finished = is_finished(run)  # asked first: its last checkpoint may appear in between
        for checkpoint in sorted((run / "checkpoints").glob("iter_???????")):
            if checkpoint not in seen and is_finished(checkpoint):
                seen.add(checkpoint)
                yield checkpoint
        if finished:
            return
        time.sleep(poll_seconds)


def _link_files(checkpoint: Path, copy: Path) -> bool:
    """Link all files; False where the file systems do not allow it."""
    for name in Artifact.open(checkpoint, kind="checkpoint").manifest["files"]:
        link = copy / name
        link.parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(checkpoint / name, link)
        except OSError as error:
            if error.errno in _CANNOT_LINK:
                return False
            raise
    return True


@contextmanager
def gone_if_deleted(checkpoint: Path) -> Iterator[None]:
    """Turn an error in the `with` block, when the checkpoint is not there any more, into CheckpointGone."""
    try:
        yield
    except (FileNotFoundError, UserError) as error:
        if is_finished(checkpoint):
            raise
        raise CheckpointGone(f"{error}. If the run has deleted it: export earlier, or to the run's own file system, or "
                             "let the run keep more (checkpoint.keep_last, checkpoint.keep_tokens)") from error
