"""The study's record, study.json, and the artifacts that it names. What is not there is left out, and said so."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from megatron_ext.artifacts import Artifact, is_finished
from megatron_ext.errors import UserError


@dataclass
class StudyRecord:
    """study.json and where it lies; places in it are relative to its folder."""

    path: Path
    values: dict[str, Any]
    missing: list[str] = field(default_factory=list)
    """What the page has to do without, in words."""

    @classmethod
    def read(cls, path: Path) -> StudyRecord:
        """Read a record.

        Raises UserError when it is not there or no JSON object with a name.
        """
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); tools.run_study writes it") from None
        except ValueError as error:
            raise UserError(f"{path}: is no JSON ({error}); run the study again to write it") from None
        if not isinstance(values, dict) or "name" not in values:
            raise UserError(f"{path}: is no record of a study: it has no name")
        return cls(path, values)

    @property
    def folder(self) -> Path:
        """Folder that places are relative to."""
        return self.path.parent

    @property
    def conditions(self) -> list[str]:
        """Names of the conditions in the order of the study."""
        return list(self.values.get("conditions", {}))

    def seeds(self, condition: str) -> dict[str, dict[str, str]]:
        """Seed -> places of its run, export and evaluation."""
        return self.values["conditions"][condition]["seeds"]

    def runs(self, condition: str) -> list[Artifact]:
        """Finished runs of a condition, one a seed."""
        places = [seed.get("run") for seed in self.seeds(condition).values()]
        return [artifact for place in places if (artifact := self.open(place))]

    @property
    def trunk(self) -> Artifact | None:
        """The run that all conditions leave."""
        return self.open(self.values.get("trunk"))

    def named(self, section: str) -> dict[str, Artifact]:
        """Artifacts of a section such as `selections`, by name; those that are there."""
        found = {name: self.open(place) for name, place in self.values.get(section, {}).items()}
        return {name: artifact for name, artifact in found.items() if artifact}

    def comparison(self) -> dict[str, Any] | None:
        """Content of comparison.json."""
        artifact = self.open(self.values.get("comparison"))
        if artifact is None:
            return None
        return json.loads((artifact.path / "comparison.json").read_text(encoding="utf-8"))

    def held_out_comparison(self) -> dict[str, Any] | None:
        """Content of held_out.json."""
        artifact = self.open(self.values.get("held_out_comparison"))
        return artifact and json.loads((artifact.path / "held_out.json").read_text(encoding="utf-8"))

    def suite_comparison(self) -> dict[str, Any] | None:
        """Content of suite_comparison.json."""
        artifact = self.open(self.values.get("suite_comparison"))
        return artifact and json.loads((artifact.path / "suite_comparison.json").read_text(encoding="utf-8"))

    def open(self, place: str | None) -> Artifact | None:
        """The artifact at a place; None when there is none."""
        if place is None or not is_finished(self.folder / place):
            return None
        return Artifact.open(self.folder / place)

    def without(self, what: str) -> None:
        """Note that the page has to do without something."""
        self.missing.append(what)

    def inputs(self) -> dict[str, Path]:
        """Name -> place of everything that the page is made from."""
        places = {"study": self.path}
        for name, place in self._places():
            if is_finished(self.folder / place):
                places[name] = self.folder / place
        return places

    def _places(self) -> Iterator[tuple[str, str]]:
        for name in ("comparison", "held_out_comparison", "suite_comparison", "trunk"):
            if self.values.get(name):
                yield name.replace("_", " "), self.values[name]
        for section in ("base", "selections", "rewrites", "judged", "tokenized"):
            for name, place in self.values.get(section, {}).items():
                yield f"{section}/{name}", place
        for name, place in self.values.get("held_out", {}).items():
            yield f"held out/{name}", place
        for condition in self.conditions:
            for seed, places in self.seeds(condition).items():
                for part, place in places.items():
                    yield f"{condition}/seed{seed}/{part}", place


def readable(text: str, conditions: Iterable[str]) -> str:
    """A verdict with conditions' names as labels; longest first, for one may hold another."""
    for name in sorted(conditions, key=len, reverse=True):
        text = text.replace(name, label(name))
    for tied in ("95 %", "p = ", "p < ", "n = ", " NPM", " bits a byte"):
        text = text.replace(tied, tied.replace(" ", "\N{NO-BREAK SPACE}"))
    return text[0].upper() + text[1:]


def joined(parts: list[str]) -> str:
    """a, b and c."""
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def model_label(name: str | None) -> str | None:
    """A model as the study names it; of a folder on this machine its name alone."""
    return Path(name).name if name and Path(name).is_absolute() else name


def label(name: str) -> str:
    """A name as people read it."""
    return name.replace("_", " ")


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as one, with dots between their names."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        found |= flat(value, f"{name}.") if isinstance(value, Mapping) else {name: value}
    return found
