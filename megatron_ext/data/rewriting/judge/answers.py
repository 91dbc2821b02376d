"""Reading the judge's answers: strictly, for an answer that must be interpreted is none."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_ext.data.rewriting.engines.interface import STOP, Completion
from megatron_ext.data.rewriting.judge.form import FINDINGS, Form

REQUEST_FAILED = "request_failed"
"""The reason against what is no answer at all; the others are against answers that cannot be used."""
_FENCE = re.compile(r"```(?:json)?[ \t]*\n(.*)\n```", re.DOTALL | re.IGNORECASE)


@dataclass(frozen=True)
class Judgement:
    """What an answer says of a pair."""

    reasons: tuple[str, ...] = ()
    """Why it says nothing; empty: it does."""
    findings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Of FINDINGS -> statements; empty where it says nothing."""

    @property
    def is_faithful(self) -> bool | None:
        """None: the answer says nothing."""
        return None if self.reasons else not any(self.findings.values())


def read_answer(completion: Completion, form: Form) -> Judgement:
    """The judgement in an answer.

    An answer is a JSON object with exactly the form's fields, which a Markdown fence may enclose, whose verdict is the
    one that its lists ask for. Anything else has a reason: request_failed, cut_by_max_tokens, not_finished, empty,
    not_json, wrong_fields, unknown_verdict, contradicts_itself.
    """
    if completion.failed:
        return Judgement((REQUEST_FAILED,))
    if completion.finish_reason != STOP:
        return Judgement(("cut_by_max_tokens" if completion.finish_reason == "length" else "not_finished",))
    text = completion.text.strip()
    if not text:
        return Judgement(("empty",))
    fenced = _FENCE.fullmatch(text)
    try:
        values = json.loads(fenced[1] if fenced else text, object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError):
        return Judgement(("not_json",))
    return _judgement(values, form)


def _judgement(values: Any, form: Form) -> Judgement:
    if not isinstance(values, dict) or values.keys() != {*form.findings.values(), form.verdict}:
        return Judgement(("wrong_fields",))
    findings = {name: values[form.findings[name]] for name in FINDINGS}
    if not all(map(_is_list_of_statements, findings.values())):
        return Judgement(("wrong_fields",))
    if values[form.verdict] not in (form.faithful, form.unfaithful):
        return Judgement(("unknown_verdict",))
    if (values[form.verdict] == form.faithful) == any(findings.values()):
        return Judgement(("contradicts_itself",))
    return Judgement((), {name: tuple(statements) for name, statements in findings.items()})


def _is_list_of_statements(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) and one.strip() for one in value)


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object that names a field twice says two things: it has no fields."""
    values = dict(pairs)
    return values if len(values) == len(pairs) else {}
