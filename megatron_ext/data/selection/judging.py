"""Which documents a selection rejects for what they are, and the names of all its reasons."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from megatron_ext.data.selection.rules import Rule

REASONS = ("score_missing", "score_nan", "rule_not_met", "missing_text", "too_short", "too_long", "duplicate_text",
           "near_duplicate", "contaminated", "over_budget")
"""Why a document is not selected; the first that applies is counted."""
PASSED = 0


@dataclass(frozen=True)
class Criteria:
    """What a document must be like."""

    rule: Rule | None
    min_chars: int
    max_chars: int | None


def code_of(reason: str) -> int:
    """The number that stands for a reason; 0 stands for none."""
    return 1 + REASONS.index(reason)


def judge(batch: pa.RecordBatch, criteria: Criteria) -> np.ndarray:
    """PASSED or the code of a reason, uint8 `[rows]`, for documents with `text` and the scores that the rule reads."""
    codes = judge_scores(batch, criteria)
    open_rows = np.flatnonzero(codes == PASSED)
    codes[open_rows] = judge_texts(batch.column("text").take(pa.array(open_rows)), criteria)
    return codes


def judge_scores(batch: pa.RecordBatch, criteria: Criteria) -> np.ndarray:
    """The same by the scores alone."""
    codes = np.full(len(batch), PASSED, dtype=np.uint8)
    if criteria.rule is not None:
        _judge_by_rule(batch, criteria.rule, codes)
    return codes


def _judge_by_rule(batch: pa.RecordBatch, rule: Rule, codes: np.ndarray) -> None:
    nulls = {name: pc.is_null(batch.column(name)).to_numpy(zero_copy_only=False) for name in rule.names}
    numbers = {name: batch.column(name).to_numpy(zero_copy_only=False)  # a null becomes NaN
               for name in rule.names - rule.labels}
    codes[~rule.holds(numbers | {name: batch.column(name) for name in rule.labels}, nulls)] = code_of("rule_not_met")
    for name, values in numbers.items():
        codes[np.isnan(values) & ~nulls[name]] = code_of("score_nan")
    for name in rule.names - rule.nullable:
        codes[nulls[name]] = code_of("score_missing")


def judge_texts(texts: pa.StringArray, criteria: Criteria) -> np.ndarray:
    """The same by the texts alone."""
    return judge_lengths(pc.utf8_length(texts), criteria)


def judge_lengths(chars: pa.Array, criteria: Criteria) -> np.ndarray:
    """The same by the lengths of the texts, in characters; null: there is no text."""
    codes = np.full(len(chars), PASSED, dtype=np.uint8)
    num_chars = pc.fill_null(chars, 0).to_numpy(zero_copy_only=False)
    if criteria.max_chars is not None:
        codes[num_chars > criteria.max_chars] = code_of("too_long")
    codes[num_chars < criteria.min_chars] = code_of("too_short")
    codes[pc.is_null(chars).to_numpy(zero_copy_only=False)] = code_of("missing_text")
    return codes
