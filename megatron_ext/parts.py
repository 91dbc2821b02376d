"""Sharing a stage among machines: part K of N makes `OUTPUT.parts/K-of-N`, and a merge makes OUTPUT of all parts.

How a stage divides its work and joins what the parts made is its own; the result is the same as that of one machine.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from megatron_ext.artifacts import is_finished, partial_folder
from megatron_ext.errors import UserError

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
        return output.with_name(f"{output.name}.parts") / f"{self.index}-of-{self.count}"

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
