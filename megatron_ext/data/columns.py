"""Columns of shards: nested ones by `a.b`, and values of whatever type as the type that a reader needs.

A score becomes the float64 that its decimal notation stands for: of a float16 or float32 the shortest one (2.7 is
stored as 2.7000000477 and stays 2.7), of a decimal all digits. So a rule selects the same documents whatever the type
of the column.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megatron_ext.data.documents import CHUNKS_TYPE
from megatron_ext.errors import UserError

Kind = Literal["text", "id", "label", "score", "chunks"]
"""What values are read as; a label is a short text, which numbers are made, too."""
TYPES: dict[Kind, pa.DataType] = {"text": pa.string(), "id": pa.string(), "label": pa.string(), "score": pa.float64(),
                                  "chunks": CHUNKS_TYPE}
_IN_WORDS = {"text": "UTF-8 text", "id": "an id (text or a whole number)", "label": "text", "score": "a number",
             "chunks": "numbers of chunks"}
_ARROW_ERRORS = (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError)
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_SHOWN_CHARS = 60


# ---- finding a column


def look_up(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column of a JSON object, `a.b` being b of the object a; None where there is none."""
    if column in row or "." not in column:
        return row.get(column)
    head, _, rest = column.partition(".")
    inner = row.get(head)
    return look_up(inner, rest) if isinstance(inner, Mapping) else None


def names_in(row: Mapping[str, Any]) -> list[str]:
    """The columns of a JSON object, nested ones as `a.b`."""
    return [name for key, value in row.items()
            for name in ([f"{key}.{inner}" for inner in names_in(value)] if isinstance(value, Mapping) else [key])]


def names_of(fields: Sequence[pa.Field]) -> list[str]:
    """The columns of a table, nested ones as `a.b`."""
    return [name for field in fields
            for name in ([f"{field.name}.{inner}" for inner in names_of(list(field.type))]
                         if pa.types.is_struct(field.type) else [field.name])]


def has_column(fields: Sequence[pa.Field], column: str) -> bool:
    """Whether a table has a column, or `a.b`; what a map holds is not known before it is read."""
    return _steps(fields, column) is not None


def column_to_read(schema: pa.Schema, column: str) -> str:
    """What to ask a Parquet file for to get a column. Raises UserError when several have its name."""
    top, *inner = _steps(list(schema), column) or [column]
    if schema.names.count(top) > 1:
        raise UserError(f"has {schema.names.count(top)} columns named {top!r}; a column that is read must be the only "
                        "one of its name")
    return ".".join([top, *inner]) if _is_of_structs(schema.field(top).type, inner) else top


def column_of(batch: pa.RecordBatch, column: str) -> pa.Array:
    """A column of what was read, nested or not, in an encoding that every kernel takes."""
    top, *inner = _steps(list(batch.schema), column) or [column]
    array = batch.column(batch.schema.names.index(top))
    for name in inner:
        array = pc.map_lookup(array, pa.scalar(name), "first") if pa.types.is_map(array.type) \
            else pc.struct_field(array, [name])
    return _plain(array)


def _plain(array: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_run_end_encoded(array.type):
        array = pc.run_end_decode(array)
    if pa.types.is_string_view(array.type) or pa.types.is_binary_view(array.type):
        array = pc.cast(array, pa.string() if pa.types.is_string_view(array.type) else pa.binary())
    return array


def _steps(fields: Sequence[pa.Field], column: str) -> list[str] | None:
    """The names on the way to a column; a plain column may have dots in its name."""
    by_name = {field.name: field.type for field in fields}
    if column in by_name:
        return [column]
    for name, kind in by_name.items():
        rest = column.removeprefix(f"{name}.")
        if rest == column:
            continue
        if pa.types.is_map(kind):
            return [name, rest]
        inner = _steps(list(kind), rest) if pa.types.is_struct(kind) else None
        if inner is not None:
            return [name, *inner]
    return None


def _is_of_structs(kind: pa.DataType, inner: Sequence[str]) -> bool:
    if not inner:
        return True
    return pa.types.is_struct(kind) and _is_of_structs(kind.field(inner[0]).type, inner[1:])


# ---- arrays


def cast(array: pa.Array, kind: Kind, column: str, place: str, place_of: Callable[[int], str]) -> pa.Array:
    """The values as their kind needs them.

    Args:
        place: where the column is, for messages.
        place_of: where a row is.

    Raises UserError that names the first row whose value cannot be.
    """
    is_number = pa.types.is_integer(array.type) or pa.types.is_floating(array.type)
    if kind == "text" and is_number:
        raise UserError(f"{place}: column {column!r} holds {array.type}, not text")
    if kind == "chunks" and not pa.types.is_null(array.type) and not _is_of_integers(array.type):
        return pa.nulls(len(array), CHUNKS_TYPE)  # another's column of that name
    try:
        return _cast(array, kind)
    except _ARROW_ERRORS as error:
        row, reason = _first_bad(array, kind, error)
    raise UserError(f"{place_of(row)}: column {column!r} ({array.type}) cannot be read as {_IN_WORDS[kind]}: {reason}")


def _cast(array: pa.Array, kind: Kind) -> pa.Array:
    if kind == "score":
        return _as_numbers(array)
    if kind == "id" and pa.types.is_floating(array.type):
        array = pc.cast(array, pa.int64())  # numbers beside empty cells; raises for fractions
    if array.type != TYPES[kind]:
        array = pc.cast(array, TYPES[kind])
    array.validate(full=True)
    return array


def _as_numbers(array: pa.Array) -> pa.Array:
    if pa.types.is_float16(array.type):
        return _from_float16(array)
    if pa.types.is_float32(array.type) or pa.types.is_decimal(array.type):
        return pc.cast(pc.cast(array, pa.string()), pa.float64())
    if pa.types.is_binary(array.type) or pa.types.is_large_binary(array.type):
        array = pc.cast(array, pa.large_string())
    return array if array.type == pa.float64() else pc.cast(array, pa.float64(), safe=pa.types.is_string(array.type))


def _from_float16(array: pa.Array) -> pa.Array:
    return pc.take(_decimals_of_float16(), array.view(pa.uint16()))


@cache
def _decimals_of_float16() -> pa.Array:
    """What each of the 65,536 float16 is in its shortest decimal notation."""
    return pa.array([float(str(value)) for value in np.arange(2**16, dtype=np.uint16).view(np.float16)], pa.float64())


def _first_bad(array: pa.Array, kind: Kind, error: Exception) -> tuple[int, Exception]:
    for row in range(len(array)):
        try:
            _cast(array.slice(row, 1), kind)
        except _ARROW_ERRORS as found:
            return row, found
    return 0, error


def _is_of_integers(kind: pa.DataType) -> bool:
    return (pa.types.is_list(kind) or pa.types.is_large_list(kind)) and pa.types.is_integer(kind.value_type)


# ---- values of JSON


def array_of(values: Sequence[Any], kind: Kind, column: str, place_of: Callable[[int], str]) -> pa.Array:
    """The same of JSON values, in which lone surrogates become U+FFFD.

    Raises UserError that names the first row whose value cannot be.
    """
    try:
        return pa.array(values, TYPES[kind])
    except (*_ARROW_ERRORS, UnicodeEncodeError, OverflowError):
        pass
    made: list[Any] = []
    for row, value in enumerate(values):
        try:
            made.append(None if value is None else _CONVERT[kind](value))
        except (ValueError, OverflowError, TypeError, *_ARROW_ERRORS):
            raise UserError(f"{place_of(row)}: field {column!r} holds {str(value)[:_SHOWN_CHARS]!r} "
                            f"({type(value).__name__}); needed: {_IN_WORDS[kind]}") from None
    return pa.array(made, TYPES[kind])


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return _LONE_SURROGATE.sub("\ufffd", value)


def _id(value: Any) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value)


def _label(value: Any) -> str:
    if isinstance(value, float):
        return pc.cast(pa.scalar(value), pa.string()).as_py()  # written as that of a table
    return str(value).lower() if isinstance(value, int) else _text(value)


def _number(value: Any) -> float:
    if isinstance(value, str):
        return pc.cast(pa.scalar(value), pa.float64()).as_py()
    return float(value)


def _chunks(value: Any) -> list[int] | None:
    is_chunks = isinstance(value, list) and all(type(number) is int for number in value)
    return value if is_chunks else None


_CONVERT: dict[Kind, Callable[[Any], Any]] = {"text": _text, "id": _id, "label": _label, "score": _number,
                                              "chunks": _chunks}
