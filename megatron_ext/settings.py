"""Typed settings: one frozen pydantic model a stage, from YAML and `key=value` overrides, all mistakes at once."""

from __future__ import annotations

import argparse
import difflib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, overload

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

from megatron_ext.errors import UserError
from megatron_ext.parts import Merge, Part
from megatron_ext.settings_file import Values, is_utf8, overlay, parse_yaml, read_layers, shorten
from megatron_ext.settings_types import (
    REPEATS,
    PartOf,
    Place,
    Slot,
    dotted_keys,
    expand_home,
    field_of,
    keys_of,
    leaf_types,
    slot_at,
)

__all__ = ["REPEATS", "PartOf", "Place", "Settings", "describe", "explain", "folder_argument", "load_settings",
           "overlay", "parse_stage_arguments", "part_problems", "path_argument", "read_layers", "set_overrides",
           "validate"]

_PART = "part"  # type of the error that holds those of a part of other settings


class Settings(BaseModel):
    """Base of all settings: immutable, unknown keys refused; the line under a field gives meaning, unit, range.

    Numbers are finite; true and false are no numbers; `~` is expanded in paths; no list names a thing twice.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)

    @property
    def unused_sections(self) -> Collection[str]:
        """Sections that the other settings put out of use: they decide nothing."""
        return ()

    @field_validator("*", mode="before")
    @classmethod
    def _is_what_it_seems(cls, value: Any, info: ValidationInfo) -> Any:
        known = leaf_types(cls.model_fields[info.field_name or ""].annotation)
        if _holds_truth(value) and not known & {bool, Any}:
            raise ValueError("true and false are no value here; write a number, or a text in quotes")
        if Path in known and (value == "" or (isinstance(value, dict) and "" in value.values())):
            raise ValueError("a path is empty; name a file or folder")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _names_nothing_twice(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[info.field_name or ""]
        if isinstance(value, (list, tuple)) and REPEATS not in field.metadata:
            named = [one for one in value if isinstance(one, (str, int, Path))]  # not numbers such as weights
            if twice := [one for one, count in Counter(named).items() if count > 1]:
                raise ValueError(f"{twice[0]} is there twice; remove one")
        return value

    @field_validator("*", mode="before")
    @classmethod
    def _parts_are_known(cls, value: Any, info: ValidationInfo) -> Any:
        part = _part_of(cls.model_fields[info.field_name or ""].metadata)
        if part and isinstance(value, dict) and part_problems(part, value):
            raise PydanticCustomError(_PART, "a part of other settings is wrong")
        return value

    @field_validator("*")
    @classmethod
    def _paths_are_whole(cls, value: Any) -> Any:
        return _whole_path(value)


def _holds_truth(value: Any) -> bool:
    return isinstance(value, bool) or (isinstance(value, (list, tuple)) and any(map(_holds_truth, value)))


def _whole_path(value: Any) -> Any:
    """Paths in a value with `~` expanded."""
    match value:
        case Path():
            if "\0" in str(value):
                raise ValueError("a path cannot hold a NUL character")
            return Path(expand_home(str(value)))
        case dict():
            return {key: _whole_path(inner) for key, inner in value.items()}
        case list():
            return [_whole_path(inner) for inner in value]
    return value


S = TypeVar("S", bound=Settings)


def load_settings(cls: type[S], path: Path | str | None = None, overrides: Sequence[str] = (),
                  find_places: Callable[[Values, Path], Values] | None = None) -> S:
    """Read a YAML (or JSON) file and apply overrides such as `optimizer.lr=1e-4`.

    A file may name a `base:` file, relative to itself, that it overlays.

    Args:
        find_places: see read_layers.

    Raises UserError that lists every mistake, an unknown key with the nearest known one.
    """
    values = read_layers(Path(path), find_places) if path is not None else {}
    return validate(cls, set_overrides(cls, values, overrides), where=str(path) if path is not None else "settings")


def set_overrides(cls: type[Settings], values: Values, overrides: Sequence[str]) -> Values:
    """The values of a file with those of `section.key=value` over them.

    Where the key takes a text or a path, the value is taken as it stands (`null` is nothing, where that is allowed);
    elsewhere it is YAML: numbers, true, [a, b], {a: 1}.

    Raises UserError that lists every override that cannot be read.
    """
    values, problems = overlay({}, values), []
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            problems.append(f"{override!r} is not of the form section.key=value")
            continue
        try:
            keys = key.split(".")
            values = overlay(values, {})
            _set_key(values, keys, _value_of(slot_at(cls, keys), text, key), override)
        except UserError as error:
            problems.append(str(error))
    if problems:
        raise UserError("; ".join(problems))
    return values


def _value_of(slot: Slot, text: str, key: str) -> Any:
    if not is_utf8(text):
        raise UserError(f"{key}={text!r} is not UTF-8")
    if slot.is_text or (slot.can_be_text and not text.startswith("[")):
        return None if text == "null" and slot.can_be_null else text
    return parse_yaml(text, key)


def validate(cls: type[S], values: Values, where: str) -> S:
    """Build settings from plain values; every mistake in one UserError."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        raise UserError(f"{where}: " + "; ".join(explain(cls, error))) from None
    except RecursionError:
        raise UserError(f"{where} is nested too deeply") from None


def explain(cls: type[Settings], error: ValidationError) -> list[str]:
    """One line for each mistake: the key, its value, the rule, the mend."""
    return list(dict.fromkeys(_explain(cls, problem) for problem in error.errors()))


Preview = Callable[[S], Iterable[str]]
"""Lines that `--dry-run` prints of a stage, from its settings alone."""


@overload
def parse_stage_arguments(cls: type[S], description: str, argv: Sequence[str] | None = None, *,
                          preview: Preview[S] | None = None, parts: Literal[False] = False) -> tuple[S, Path]: ...


@overload
def parse_stage_arguments(cls: type[S], description: str, argv: Sequence[str] | None = None, *,
                          preview: Preview[S] | None = None,
                          parts: Literal[True]) -> tuple[S, Path, Part | Merge | None]: ...


def parse_stage_arguments(cls: type[S], description: str, argv: Sequence[str] | None = None, *,
                          preview: Preview[S] | None = None,
                          parts: bool = False) -> tuple[S, Path] | tuple[S, Path, Part | Merge | None]:
    """The command line that all stage programs share: `--output DIR [--config FILE] [--dry-run] [key=value …]`.

    Returns the settings and the output folder; with `parts`, for stages that many machines can share, also what
    `--part K/N` or `--merge N` asked for. `--help` lists every field with its description and default. `--dry-run`
    checks the settings and the places that they name, tells what would be made of what, and leaves.

    Args:
        preview: what else is known of this stage before it runs.
    """
    parser = _stage_parser(cls, description)
    if parts:
        share = parser.add_mutually_exclusive_group()
        share.add_argument("--part", metavar="K/N", help="make part K (from 0) of N, in OUTPUT.parts/K-of-N")
        share.add_argument("--merge", metavar="N", help="make OUTPUT of its N parts")
    arguments = parser.parse_intermixed_args(argv)
    settings = load_settings(cls, arguments.config, arguments.overrides)
    asked = _asked_share(arguments) if parts else None
    if arguments.dry_run:
        _tell(settings, arguments.output, preview)
        raise SystemExit(0)
    return (settings, arguments.output, asked) if parts else (settings, arguments.output)


def _tell(settings: S, output: Path, preview: Preview[S] | None) -> None:
    from megatron_ext.preview import describe_stage

    print(*describe_stage(settings, output), *(preview(settings) if preview else ()), sep="\n")


def path_argument(text: str) -> Path:
    """A path on a command line: `~` is expanded."""
    if not text or not is_utf8(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no path" + ("" if text else ": it is empty"))
    try:
        return Path(expand_home(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def folder_argument(text: str) -> Path:
    """A folder on a command line that is made or filled: no file may be there."""
    path = path_argument(text)
    if path.name in ("", ".."):
        raise argparse.ArgumentTypeError(f"{text!r} names no folder of its own: give the name of the folder to make")
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a file; give the name of a folder")
    for link in (path, *path.parents):
        if link.is_symlink() and not link.exists():
            raise argparse.ArgumentTypeError(f"{link} is a link to {link.readlink()}, where nothing is")
    return path


def _asked_share(arguments: argparse.Namespace) -> Part | Merge | None:
    if arguments.part is not None:
        return Part.parse(arguments.part)
    return Merge.parse(arguments.merge) if arguments.merge is not None else None


def _stage_parser(cls: type[Settings], description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, epilog="settings:\n" + describe(cls), allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=folder_argument, required=True, help="folder of the artifact to make")
    parser.add_argument("--config", type=path_argument, help="YAML file of settings")
    parser.add_argument("--dry-run", action="store_true", help="check, tell what would be made, and leave")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over the file's")
    return parser


def describe(cls: type[Settings], prefix: str = "  ") -> str:
    """One line a field: name, default, description."""
    lines = []
    for name in keys_of(cls):
        field = field_of(cls, name)
        assert field is not None
        section = slot_at(cls, [name]).section
        if section is not None and not _part_of(field.metadata):
            lines.append(describe(section, f"{prefix}{name}."))
            continue
        default = "required" if field.is_required() else f"default {field.get_default(call_default_factory=True)!r}"
        lines.append(f"{prefix}{name}: {field.description or ''} ({default})")
    return "\n".join(lines)


def _part_of(metadata: Iterable[Any]) -> PartOf | None:
    return next((mark for mark in metadata if isinstance(mark, PartOf)), None)


def _set_key(values: Values, keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        inner = values.get(key, {})
        if not isinstance(inner, dict):
            raise UserError(f"{override!r}: {key} is a value, not a section")
        values[key] = values = dict(inner)
    values[keys[-1]] = value


def part_problems(part: PartOf, values: Values, prefix: str = "") -> list[str]:
    """What is wrong with some settings of a class, be the others what they may: one line each.

    Args:
        prefix: stands before every key, e.g. `evaluation.settings.`.
    """
    problems = [f"{prefix}{key} is set by what stands around it; remove it" for key in part.taken
                if _holds(values, key)]
    cls = part.find()
    try:
        cls.model_validate(overlay(values, _nested(part.taken)))
    except ValidationError as error:
        problems += [_explain(cls, problem, prefix) for problem in error.errors() if problem["type"] != "missing"]
    return list(dict.fromkeys(problems))


def _nested(values: Mapping[str, Any]) -> Values:
    """{a.b: c} as {a: {b: c}}."""
    nested: Values = {}
    for key, value in values.items():
        for name in reversed(key.split(".")):
            value = {name: value}
        nested = overlay(nested, value)
    return nested


def _holds(values: Any, key: str) -> bool:
    for part in key.split("."):
        if not isinstance(values, dict) or part not in values:
            return False
        values = values[part]
    return True


def _explain(cls: type[Settings], problem: Any, prefix: str = "") -> str:
    location = [str(part) for part in problem["loc"] if "[" not in str(part)]  # parts of a union are no keys
    key = prefix + ".".join(location)
    if problem["type"] == _PART:
        part = _part_of(slot_at(cls, location).metadata)
        assert part is not None
        return "; ".join(part_problems(part, problem["input"], f"{key}."))
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key!r}; {_mend_of_unknown(cls, location)}"
    if problem["type"] == "missing":
        return f"{key!r} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if not location:
        return f"{prefix.removesuffix('.')}: {message}" if prefix else message
    return f"{key} = {shorten(repr(problem['input']))}: {message}"


def _mend_of_unknown(cls: type[Settings], location: list[str]) -> str:
    section = slot_at(cls, location[:-1]).section
    known = keys_of(section) if section else []
    elsewhere = [name for name in dotted_keys(cls) if name.split(".")[-1] == location[-1]]
    near = elsewhere or difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(sorted(known))}"
