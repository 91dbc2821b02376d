"""Sharing a stage among machines: part K of N makes `OUTPUT.parts/K-of-N`, and a merge makes OUTPUT of all parts.

How a stage divides its work and joins what the parts made is its own; the result is the same as that of one machine.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_ext.artifacts import Artifact, differences, is_finished, partial_folder, reference
from megatron_ext.errors import UserError
from megatron_ext.redaction import redact

PART = "part"
"""Key of a part's request: [its index, the number of parts]; all else is the request of the whole."""
_PART = re.compile(r"(\d+)/(\d+)")


@dataclass(frozen=True)
class Part:
    """One of `count` shares of a stage's work."""

    index: int
    """From 0, as Slurm counts the tasks of an array."""
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """`K/N` with 0 <= K < N.

        Raises UserError for anything else.
        """
        match = _PART.fullmatch(text)
        if not match or not int(match[1]) < int(match[2]):
            raise UserError(f"--part {text}: give K/N, part K of N, counted from 0: 0/8 to 7/8")
        return cls(int(match[1]), int(match[2]))

    def folder(self, output: Path) -> Path:
        """Where the part of the artifact `output` is made."""
        return _folder_of_parts(output) / f"{self.index}-of-{self.count}"

    def takes(self, position: int) -> bool:
        """Whether the piece of work at this position is this part's: pieces are dealt like cards."""
        return position % self.count == self.index


@dataclass(frozen=True)
class Merge:
    """The joining of `count` finished parts."""

    count: int

    @classmethod
    def parse(cls, text: str) -> Merge:
        """The number of parts.

        Raises UserError for what is no number of 1 or more.
        """
        if not text.isdigit() or int(text) < 1:
            raise UserError(f"--merge {text}: give the number of parts, 1 or more")
        return cls(int(text))

    def folders(self, output: Path) -> list[Path]:
        """The parts of the artifact `output`, in order.

        Raises UserError that names every part that is not finished.
        """
        folders = [Part(index, self.count).folder(output) for index in range(self.count)]
        missing = [folder for folder in folders if not is_finished(folder)]
        if missing:
            told = ", ".join(f"{folder}{' (unfinished)' if partial_folder(folder).exists() else ''}"
                             for folder in missing)
            raise UserError(f"{len(missing)} of {self.count} parts are missing: {told}; make them with --part K/"
                            f"{self.count} first")
        return folders


def parts_of(output: Path) -> list[Path]:
    """Folders of the parts of the artifact `output`, finished or not, of every number of parts that was tried."""
    return sorted(_folder_of_parts(output).glob("*-of-*"))


def _folder_of_parts(output: Path) -> Path:
    return output.with_name(f"{output.name}.parts")


def check_parts(parts: Sequence[Path], request: Mapping[str, Any], inputs: Mapping[str, Path]) -> None:
    """Raise UserError when a part was made with other settings, or from other inputs, than the whole is asked for."""
    asked = {"settings": redact(json.loads(json.dumps(request))),
             "inputs": {key: reference(at) for key, at in inputs.items()}}
    for part in parts:
        made = Artifact.open(part).manifest["request"]
        settings = {key: value for key, value in made["settings"].items() if key != PART}
        changes = [f"{key}: made with {before!r}, asked for {now!r}" for key, before, now
                   in differences({"settings": settings, "inputs": made["inputs"]}, asked)]
        if changes:
            raise UserError(f"{part} was made from another request ({'; '.join(changes)}); delete it and make it again")
