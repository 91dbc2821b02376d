"""Typed settings: one frozen pydantic model a stage, from YAML and `key=value` overrides, all mistakes at once."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin, overload

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from megatron_ext.errors import UserError
from megatron_ext.parts import Merge, Part


class Settings(BaseModel):
    """Base of all settings: immutable, unknown keys refused; the line under a field gives meaning, unit, range."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


S = TypeVar("S", bound=Settings)


def load_settings(cls: type[S], path: Path | str | None = None, overrides: Sequence[str] = ()) -> S:
    """Read a YAML (or JSON) file and apply overrides such as `optimizer.lr=1e-4`.

    A file may name a `base:` file, relative to itself, that it overlays.

    Raises UserError that lists every mistake, an unknown key with the nearest known one.
    """
    values = read_layers(Path(path)) if path is not None else {}
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator:
            raise UserError(f"{override!r} is not of the form section.key=value")
        _set_key(values, key.split("."), _parse_scalar(text), override)
    return validate(cls, values, where=str(path) if path is not None else "settings")


def validate(cls: type[S], values: dict[str, Any], where: str) -> S:
    """Build settings from plain values; every mistake in one UserError."""
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        problems = [_explain(cls, problem) for problem in error.errors()]
        raise UserError(f"{where}: " + "; ".join(problems)) from None


def read_layers(path: Path) -> dict[str, Any]:
    """The values of a YAML file over those of the file that its `base:` names (relative to itself)."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise UserError(f"{path}: is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: must hold `key: value` lines, not a {type(values).__name__}")
    base = values.pop("base", None)
    return overlay(read_layers(path.parent / base), values) if base else values


def overlay(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    """`base` with the values of `top` over it, section by section."""
    merged = dict(base)
    for key, value in top.items():
        both_sections = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = overlay(merged[key], value) if both_sections else value
    return merged


@overload
def parse_stage_arguments(cls: type[S], description: str, argv: Sequence[str] | None = None, *,
                          parts: Literal[False] = False) -> tuple[S, Path]: ...


@overload
def parse_stage_arguments(cls: type[S], description: str, argv: Sequence[str] | None = None, *,
                          parts: Literal[True]) -> tuple[S, Path, Part | Merge | None]: ...


def parse_stage_arguments(cls: type[S], description: str, argv: Sequence[str] | None = None, *,
                          parts: bool = False) -> tuple[S, Path] | tuple[S, Path, Part | Merge | None]:
    """The command line that all stage programs share: `--output DIR [--config FILE] [key=value …]`.

    Returns the settings and the output folder; with `parts`, for stages that many machines can share, also what
    `--part K/N` or `--merge N` asked for. `--help` lists every field with its description and default.
    """
    parser = _stage_parser(cls, description)
    if parts:
        share = parser.add_mutually_exclusive_group()
        share.add_argument("--part", metavar="K/N", help="make part K (from 0) of N, in OUTPUT.parts/K-of-N")
        share.add_argument("--merge", metavar="N", help="make OUTPUT of its N parts")
    arguments = parser.parse_intermixed_args(argv)
    settings = load_settings(cls, arguments.config, arguments.overrides)
    return (settings, arguments.output, _asked_share(arguments)) if parts else (settings, arguments.output)


def _asked_share(arguments: argparse.Namespace) -> Part | Merge | None:
    if arguments.part is not None:
        return Part.parse(arguments.part)
    return Merge.parse(arguments.merge) if arguments.merge is not None else None


def _stage_parser(cls: type[Settings], description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, epilog="settings:\n" + describe(cls),
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of the artifact to make")
    parser.add_argument("--config", type=Path, help="YAML file of settings")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that win over the file's")
    return parser


def describe(cls: type[Settings], prefix: str = "  ") -> str:
    """One line a field: name, default, description."""
    lines = []
    for name, field in cls.model_fields.items():
        section = _section_of(field.annotation)
        if section is not None:
            lines.append(describe(section, f"{prefix}{name}."))
            continue
        default = "required" if field.is_required() else f"default {field.get_default(call_default_factory=True)!r}"
        lines.append(f"{prefix}{name}: {field.description or ''} ({default})")
    return "\n".join(lines)


def _set_key(values: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise UserError(f"{override!r}: {key} is a value, not a section")
    values[keys[-1]] = value


def _parse_scalar(text: str) -> Any:
    value = yaml.safe_load(text)
    if isinstance(value, str):
        # YAML 1.1 reads 1e-4 (no dot) as a string; people mean the number.
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _explain(cls: type[Settings], problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    key = ".".join(location)
    if problem["type"] == "extra_forbidden":
        known = _fields_at(cls, location[:-1])
        elsewhere = [name for name in _dotted_fields(cls) if name.split(".")[-1] == location[-1]]
        near = elsewhere or difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        mend = f"did you mean {near[0]!r}?" if near else f"known keys here: {', '.join(sorted(known))}"
        return f"unknown key {key!r}; {mend}"
    if problem["type"] == "missing":
        return f"{key!r} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key} = {problem['input']!r}: {message}" if key else message


def _fields_at(cls: type[Settings], location: list[str]) -> list[str]:
    for part in location:
        if part not in cls.model_fields:  # an index or key of a list or dict: stay at its element type
            continue
        section = _section_of(cls.model_fields[part].annotation)
        if section is None:
            return []
        cls = section
    return list(cls.model_fields)


def _dotted_fields(cls: type[Settings]) -> Iterator[str]:
    """All keys, those of sections as `section.key`."""
    for name, field in cls.model_fields.items():
        yield name
        section = _section_of(field.annotation)
        if section is not None and get_origin(field.annotation) not in (dict, list):
            yield from (f"{name}.{key}" for key in _dotted_fields(section))


def _section_of(annotation: Any) -> type[Settings] | None:
    """The settings class inside an annotation such as `Section`, `Section | None`, `dict[str, Section]`."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    for argument in get_args(annotation):
        section = _section_of(argument)
        if section is not None:
            return section
    return None
