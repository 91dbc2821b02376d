"""Selection rules: conditions over scores, e.g. `stem > 2.5 or lang == 'pt'`, parsed without executing anything.

Grammar: comparison chains (`0.5 <= stem + edu <= 2.0`, with < <= > >= == != and + - * / inside), `stem in [1, 2]`,
`lang == 'pt'`, `lang not in ['en', 'es']`, `edu is null`, `edu is not null`; `and`, `or`, `not`, parentheses. A name
that is compared with text, or asked for null alone, is a column of text; the others are numbers.

A document that lacks a value which the rule reads is rejected (`score_missing`), unless the rule asks of it whether it
`is null`: then comparisons with it are false, and `!=` and `not in` true. NaN is a value, not null, and meets no rule:
it is rejected with a reason of its own (`score_nan`). Where arithmetic gives NaN (0 / 0), comparisons are as Python's.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megatron_ext.errors import UserError

_COMPARISONS: dict[type[ast.cmpop], Callable[..., np.ndarray]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}
_CONNECTIVES: dict[type[ast.boolop], Callable[..., np.ndarray]] = {ast.And: np.logical_and, ast.Or: np.logical_or}
_ARITHMETIC: dict[type[ast.operator], Callable[..., np.ndarray]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
}
_NULL = ("null", "None")

Values = Mapping[str, np.ndarray | pa.Array]
"""Numbers as float64 `[n]`, null and NaN both NaN; texts as Arrow strings."""
Nulls = Mapping[str, np.ndarray]
"""Where a value is null, bool `[n]`."""


@dataclass(frozen=True)
class Rule:
    """A parsed rule."""

    text: str
    names: frozenset[str]
    """The scores that it reads."""
    labels: frozenset[str]
    """Those of them that are text."""
    nullable: frozenset[str]
    """Those of them that may be null, as the rule asks whether they are."""
    condition: ast.expr

    def holds(self, values: Values, nulls: Nulls | None = None) -> np.ndarray:
        """Where the rule holds, bool `[n]`; `nulls` may be left out where nothing is null."""
        with np.errstate(all="ignore"):  # what a division by zero gives is compared like any number
            return _evaluate(self.condition, values, nulls or {})


def parse_rule(text: str, score_names: Collection[str]) -> Rule:
    """Parse a rule. Raises UserError that points at what is not part of the grammar, or lists the known scores."""
    try:
        condition = ast.parse(text.strip(), mode="eval").body
        _check_condition(condition, text)
    except (SyntaxError, RecursionError, MemoryError, OverflowError) as error:
        raise UserError(f"rule {text!r} cannot be read: {getattr(error, 'msg', error)}") from None
    except ValueError as error:
        raise error if isinstance(error, UserError) else UserError(f"rule {text!r} cannot be read: {error}") from None
    names = _names_in(condition)
    unknown = sorted(names - set(score_names))
    if unknown:
        raise UserError(f"rule {text!r} names {', '.join(unknown)}; the scores are: "
                        f"{', '.join(sorted(score_names)) or 'none (set `scores`)'}")
    if not names:
        raise UserError(f"rule {text!r} reads no score; the scores are: {', '.join(sorted(score_names))}")
    nullable = {node.left.id for node in _comparisons(condition) if _asks_for_null(node)}
    labels = {name for node in _comparisons(condition) if _reads_text(node) for name in _names_in(node)}
    numbers = {name for node in _comparisons(condition) if not _reads_text(node) and not _asks_for_null(node)
               for name in _names_in(node)}
    if labels & numbers:
        raise UserError(f"rule {text!r} compares {', '.join(sorted(labels & numbers))} with text and with numbers")
    return Rule(text, names, frozenset(labels | (nullable - numbers)), frozenset(nullable), condition)


# ---- checking


def _check_condition(node: ast.expr, text: str) -> None:
    match node:
        case ast.BoolOp(values=values):
            for value in values:
                _check_condition(value, text)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            _check_condition(operand, text)
        case ast.Compare() if _asks_for_null(node):
            return
        case ast.Compare(ops=[ast.In() | ast.NotIn()], comparators=[ast.List() | ast.Tuple() | ast.Set()]):
            _check_membership(node, text)
        case ast.Compare() if _reads_text(node):
            _check_text_comparison(node, text)
        case ast.Compare(left=left, ops=operators, comparators=others) if all(type(o) in _COMPARISONS
                                                                              for o in operators):
            for value in (left, *others):
                _check_number(value, text)
        case _:
            raise UserError(f"rule {text!r}: {ast.unparse(node)!r} is not a comparison such as `stem > 2.5`, "
                            "`lang in ['pt', 'gl']`, `edu is null`; join comparisons with and, or, not")


def _check_membership(node: ast.Compare, text: str) -> None:
    elements = node.comparators[0].elts  # type: ignore[attr-defined]
    are_texts = [_is_text(element) for element in elements]
    if not elements or any(are_texts) != all(are_texts):
        raise UserError(f"rule {text!r}: {ast.unparse(node)!r} needs a list of numbers, or of texts")
    if not all(are_texts):
        for value in (node.left, *elements):
            _check_number(value, text)
    elif not isinstance(node.left, ast.Name):
        raise UserError(f"rule {text!r}: {ast.unparse(node.left)!r} is not the name of a column of text")


def _check_text_comparison(node: ast.Compare, text: str) -> None:
    sides = (node.left, *node.comparators)
    is_fine = len(node.ops) == 1 and isinstance(node.ops[0], ast.Eq | ast.NotEq) \
        and any(isinstance(side, ast.Name) for side in sides) and any(_is_text(side) for side in sides)
    if not is_fine:
        raise UserError(f"rule {text!r}: {ast.unparse(node)!r}: text is compared by `lang == 'pt'`, `lang != 'pt'`, "
                        "`lang in ['pt', 'gl']`")


def _check_number(node: ast.expr, text: str) -> None:
    match node:
        case ast.Name():
            return
        case ast.Constant(value=value) if type(value) in (int, float):
            float(value)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            _check_number(operand, text)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            _check_number(left, text)
            _check_number(right, text)
        case _:
            raise UserError(f"rule {text!r}: {ast.unparse(node)!r} is neither a score name nor a number")


def _comparisons(node: ast.expr) -> Iterator[ast.Compare]:
    return (inner for inner in ast.walk(node) if isinstance(inner, ast.Compare))


def _names_in(node: ast.expr) -> frozenset[str]:
    return frozenset(inner.id for inner in ast.walk(node) if isinstance(inner, ast.Name)) - set(_NULL)


def _asks_for_null(node: ast.Compare) -> bool:
    match node:
        case ast.Compare(left=ast.Name(), ops=[ast.Is() | ast.IsNot()], comparators=[ast.Name(id="null")]):
            return True
        case ast.Compare(left=ast.Name(), ops=[ast.Is() | ast.IsNot()], comparators=[ast.Constant(value=None)]):
            return True
    return False


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _reads_text(node: ast.Compare) -> bool:
    return any(_is_text(inner) for inner in ast.walk(node))


# ---- evaluating


def _evaluate(node: ast.expr, values: Values, nulls: Nulls) -> np.ndarray:
    match node:
        case ast.BoolOp(op=connective, values=parts):
            return reduce(_CONNECTIVES[type(connective)], [_evaluate(part, values, nulls) for part in parts])
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return np.logical_not(_evaluate(operand, values, nulls))
        case ast.Compare(left=ast.Name(id=name), ops=[ast.Is() | ast.IsNot() as op]):
            is_null = nulls.get(name, np.zeros(len(values[name]), dtype=bool))
            return is_null if isinstance(op, ast.Is) else ~is_null
        case ast.Compare(ops=[op], comparators=[ast.List() | ast.Tuple() | ast.Set() as group]):
            return _is_among(node.left, group.elts, values) ^ isinstance(op, ast.NotIn)
        case ast.Compare(left=left, ops=[op], comparators=[right]) if _reads_text(node):
            name, text = (left, right) if isinstance(left, ast.Name) else (right, left)
            return _is_among(name, [text], values) ^ isinstance(op, ast.NotEq)
        case ast.Compare(left=left, ops=operators, comparators=others):
            sides = [_number(side, values) for side in (left, *others)]
            links = [_COMPARISONS[type(compare)](a, b)
                     for compare, a, b in zip(operators, sides, sides[1:], strict=False)]
            return reduce(np.logical_and, links)
    raise AssertionError(f"not checked when parsed: {ast.dump(node)}")


def _is_among(node: ast.expr, elements: list[ast.expr], values: Values) -> np.ndarray:
    if not all(map(_is_text, elements)):
        number = _number(node, values)
        return reduce(np.logical_or, [number == _number(element, values) for element in elements])
    texts = values[node.id]  # type: ignore[attr-defined]
    found = pc.is_in(texts, pa.array([element.value for element in elements], pa.string()))  # type: ignore
    return found.to_numpy(zero_copy_only=False)  # null is among none


def _number(node: ast.expr, values: Values) -> np.ndarray:
    match node:
        case ast.Name(id=name):
            return values[name]
        case ast.Constant(value=value):
            return np.float64(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand, values)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _number(operand, values)
        case ast.BinOp(left=left, op=op, right=right):
            return _ARITHMETIC[type(op)](_number(left, values), _number(right, values))
    raise AssertionError(f"not checked when parsed: {ast.dump(node)}")
