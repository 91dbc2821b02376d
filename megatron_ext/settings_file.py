"""Reading settings from YAML (of which JSON is a part), with every mistake told in one line.

The values are those of YAML 1.2's core schema, in which people's words stay words: `no`, `on`, `24:00:00` and
`2024-01-31` are texts, `010` is no octal number, and `1e-4` is a number.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

from megatron_ext.errors import UserError

BASE_KEY = "base"
Values = dict[str, Any]
_MAX_INTEGER = 2**64  # beyond any count or seed; larger ones overflow in arithmetic
_SHOWN_CHARS = 100


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key that is there twice."""

    yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012 (PyYAML's own way; filled below)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> Any:
        """As SafeLoader; of a key that is there twice all but the last value would be lost without a word."""
        first: dict[tuple[str, str], yaml.Mark] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                before = first.setdefault((key.tag, key.value), key.start_mark)
                if before is not key.start_mark:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"key {key.value!r} is there twice (first in line {before.line + 1}); remove one",
                        key.start_mark)
        return super().construct_mapping(node, deep)


for _tag, _pattern, _first in (
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)\Z", "tTfF"),
    ("int", r"(?:[-+]?(?:0|[1-9][0-9_]*)|0x[0-9a-fA-F]+)\Z", "-+0123456789"),
    ("float", r"(?:[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)?|[0-9][0-9_]*[eE][-+]?[0-9]+)"
              r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z", "-+0123456789."),
    ("merge", r"<<\Z", "<"),
    ("null", r"(?:~|null|Null|NULL|)\Z", ["~", "n", "N", ""]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first))


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text.

    Raises UserError, one line that begins with `where`, for what is no YAML or holds what no setting can be.
    """
    try:
        value = yaml.load(text, _Loader)
        problems = list(_odd_values(value))
    except yaml.YAMLError as error:
        raise UserError(f"{where}{_yaml_problem(error)}") from None
    except RecursionError:
        raise UserError(f"{where} is nested too deeply, or holds itself") from None
    except ValueError as error:  # a number of thousands of digits, an impossible date
        raise UserError(f"{where} is not valid YAML: {shorten(str(error))}") from None
    if problems:
        raise UserError(f"{where}: " + "; ".join(problems))
    return value


def read_file(path: Path) -> Values:
    """The values of a settings file. Raises UserError for a file that cannot be read or is none."""
    values = parse_yaml(_read_text(path), str(path))
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path} must hold `key: value` lines, not a {type(values).__name__}")
    return values


def read_layers(path: Path, find_places: Callable[[Values, Path], Values] | None = None) -> Values:
    """The values of a YAML file over those of the file that its `base:` names (relative to itself).

    Args:
        find_places: given a file's values and its folder, returns them with the relative paths that are meant.

    Raises UserError for files that cannot be read, are no settings files, or name each other as base.
    """
    layers: list[Values] = []
    seen: list[Path] = []
    place: Path | None = Path(path)
    while place is not None:
        if place.resolve() in seen:
            raise UserError(f"{path}: the files name each other as `base`: {' -> '.join(map(str, [*seen, place]))}; "
                            "one of them must stand by itself")
        seen.append(place.resolve())
        values = read_file(place)
        base = values.pop(BASE_KEY, None)
        if base is not None and (not isinstance(base, str) or not base):
            raise UserError(f"{place}: base = {base!r} must be the path of a file, relative to this one")
        layers.append(find_places(values, place.parent) if find_places else values)
        place = place.parent / Path(base).expanduser() if base else None
    merged: Values = {}
    for layer in reversed(layers):
        merged = overlay(merged, layer)
    return merged


def overlay(base: Values, top: Values) -> Values:
    """`base` with the values of `top` over it, section by section."""
    merged = dict(base)
    for key, value in top.items():
        both_sections = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = overlay(merged[key], value) if both_sections else value
    return merged


def shorten(text: str) -> str:
    """A text on one line, cut where it is long."""
    line = " ".join(text.split())
    return line if len(line) <= _SHOWN_CHARS else f"{line[:_SHOWN_CHARS]}…"


def is_utf8(text: str) -> bool:
    """Whether a text can be written: lone surrogates cannot (bytes of a command line that are not UTF-8)."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path} is UTF-16; save it as UTF-8")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}: line {line} is not UTF-8 (byte 0x{data[error.start]:02x}); save the file as "
                        "UTF-8") from None


def _yaml_problem(error: yaml.YAMLError) -> str:
    """`: line 3, column 5: what is wrong`."""
    if isinstance(error, yaml.reader.ReaderError):
        return f" is no text file: character U+{error.character:04X} at position {error.position}"
    if not isinstance(error, yaml.MarkedYAMLError):
        return f" is not valid YAML: {shorten(str(error))}"
    mark = error.problem_mark or error.context_mark
    place = f": line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    mend = "; indent with spaces" if "'\\t'" in str(error.problem) else ""
    told = ", ".join(filter(None, (error.context, error.problem)))
    return f"{place}: {shorten(told)}{mend}"


def _odd_values(value: Any, key: str = "") -> Iterator[str]:
    """One line for each value that YAML knows and no setting can be."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _odd_text(name, f"key {name!r}") if isinstance(name, str) else ()
            yield from _odd_values(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            yield from _odd_values(inner, f"{key}.{position}" if key else str(position))
    elif isinstance(value, str):
        yield from _odd_text(value, key or "value")
    elif isinstance(value, float) and not math.isfinite(value):
        yield f"{key} = {value}: must be a finite number".lstrip(" =")
    elif isinstance(value, int) and abs(value) > _MAX_INTEGER:
        yield f"{key}: {shorten(str(value)[:40])} is too large a number"
    elif value is not None and not isinstance(value, (bool, int, float)):
        yield f"{key}: {shorten(repr(value))} is a {type(value).__name__}; needed: text, number, list or section"


def _odd_text(text: str, key: str) -> Iterator[str]:
    if not is_utf8(text):
        yield f"{key} is not UTF-8 text"
    elif "\0" in text:
        yield f"{key} holds a NUL character"
