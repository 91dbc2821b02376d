"""Selection rules: conditions over score names, e.g. `stem > 2.5 or edu > 2.5`, parsed without executing anything.

Grammar: comparison chains (`0.5 <= stem <= 2.0`, with < <= > >= == !=), `and`, `or`, `not`, parentheses, numbers and
score names.
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from functools import reduce

import numpy as np

from megatron_ext.errors import UserError

_COMPARISONS: dict[type[ast.cmpop], Callable[..., np.ndarray]] = {
    ast.Lt: operator.lt, ast.LtE: operator.le, ast.Gt: operator.gt, ast.GtE: operator.ge,
    ast.Eq: operator.eq, ast.NotEq: operator.ne,
}
_CONNECTIVES: dict[type[ast.boolop], Callable[..., np.ndarray]] = {ast.And: np.logical_and, ast.Or: np.logical_or}


@dataclass(frozen=True)
class Rule:
    """A parsed rule."""

    text: str
    names: frozenset[str]
    """The scores that it reads."""
    condition: ast.expr

    def holds(self, scores: Mapping[str, np.ndarray]) -> np.ndarray:
        """Where the rule holds, bool `[n]`, given each score as float64 `[n]`. Comparisons with NaN are false."""
        return _evaluate(self.condition, scores)


def parse_rule(text: str, score_names: Collection[str]) -> Rule:
    """Parse a rule. Raises UserError that points at what is not part of the grammar, or lists the known scores."""
    try:
        condition = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"rule {text!r} cannot be read: {getattr(error, 'msg', error)}") from None
    _check_condition(condition, text)
    names = frozenset(node.id for node in ast.walk(condition) if isinstance(node, ast.Name))
    unknown = sorted(names - set(score_names))
    if unknown:
        raise UserError(f"rule {text!r} names {', '.join(unknown)}; the scores are: "
                        f"{', '.join(sorted(score_names)) or 'none (set `scores`)'}")
    if not names:
        raise UserError(f"rule {text!r} reads no score; the scores are: {', '.join(sorted(score_names))}")
    return Rule(text, names, condition)


def _check_condition(node: ast.expr, text: str) -> None:
    match node:
        case ast.BoolOp(values=values):
            for value in values:
                _check_condition(value, text)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            _check_condition(operand, text)
        case ast.Compare(left=left, ops=operators, comparators=others) if all(type(o) in _COMPARISONS
                                                                              for o in operators):
            for value in (left, *others):
                _check_number(value, text)
        case _:
            raise UserError(f"rule {text!r}: {ast.unparse(node)!r} is not a comparison such as `stem > 2.5`; "
                            "join comparisons with and, or, not")


def _check_number(node: ast.expr, text: str) -> None:
    match node:
        case ast.Name():
            return
        case ast.Constant(value=value) if type(value) in (int, float):
            return
        case ast.UnaryOp(op=ast.USub() | ast.UAdd(), operand=operand):
            _check_number(operand, text)
        case _:
            raise UserError(f"rule {text!r}: {ast.unparse(node)!r} is neither a score name nor a number")


def _evaluate(node: ast.expr, scores: Mapping[str, np.ndarray]) -> np.ndarray:
    match node:
        case ast.BoolOp(op=connective, values=values):
            return reduce(_CONNECTIVES[type(connective)], [_evaluate(value, scores) for value in values])
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            return np.logical_not(_evaluate(operand, scores))
        case ast.Compare(left=left, ops=operators, comparators=others):
            values = [_number(value, scores) for value in (left, *others)]
            links = [_COMPARISONS[type(compare)](a, b)
                     for compare, a, b in zip(operators, values, values[1:], strict=False)]
            return reduce(np.logical_and, links)
    raise AssertionError(f"not checked when parsed: {ast.dump(node)}")


def _number(node: ast.expr, scores: Mapping[str, np.ndarray]) -> np.ndarray:
    match node:
        case ast.Name(id=name):
            return scores[name]
        case ast.Constant(value=value):
            return np.float64(value)
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_number(operand, scores)
        case ast.UnaryOp(op=ast.UAdd(), operand=operand):
            return _number(operand, scores)
    raise AssertionError(f"not checked when parsed: {ast.dump(node)}")
