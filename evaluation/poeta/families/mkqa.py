"""Open questions with short answers, without a passage."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from evaluation.poeta.families.squad import normalise_answer
from evaluation.poeta.metrics import mean
from evaluation.poeta.raw import RawData, Row
from evaluation.poeta.task import Aggregation, Document, Loaded, Metrics, Task
from megatron_ext.errors import UserError

Record = Mapping[str, Any]
_YES_NO = {"yes": "sim", "no": "não"}
_BINARY_ANSWERS = (("yes", re.compile(r"\s*sim", re.IGNORECASE)), ("no", re.compile(r"\s*n[aã]o", re.IGNORECASE)))


def best_f1(records: Sequence[Record]) -> float:
    """100 x the best mean F1 over thresholds on the no-answer probability, two decimals.

    That probability is 0 for every document, so the thresholds only pick a prefix: silence is right for what cannot be
    answered, and each document after that adds its F1, or -1 for an answer where none exists.
    """
    running = best = sum(not record["answerable"] for record in records)
    for record in records:
        running += record["f1"] if record["answerable"] else -float(record["answered"])
        best = max(best, running)
    return round(100 * best / len(records), 2)


def best_em(records: Sequence[Record]) -> float:
    """100 x mean exact match, two decimals."""
    return _percent([record["em"] for record in records])


def answerable_em(records: Sequence[Record]) -> float:
    """Exact match of what can be answered."""
    return _percent([record["em"] for record in records if record["answerable"]])


def answerable_f1(records: Sequence[Record]) -> float:
    """F1 of what can be answered."""
    return _percent([record["f1"] for record in records if record["answerable"]])


def unanswerable_em(records: Sequence[Record]) -> float:
    """Exact match of what cannot be answered; NaN where everything can, which is the rule."""
    return _percent([record["em"] for record in records if not record["answerable"]])


def f1_threshold(records: Sequence[Record]) -> float:
    """The threshold that `best_f1` chose: always 0."""
    return 0


class Mkqa(Task):
    """Answers are compared as in SQuAD, best over all aliases."""

    aggregations: ClassVar[Mapping[str, Aggregation]] = {
        "best_em": best_em, "best_f1": best_f1, "best_answerable_em": answerable_em,
        "best_answerable_f1": answerable_f1, "best_unanswerable_em": unanswerable_em,
        "best_f1_threshold": f1_threshold,
    }

    def load(self, raw: RawData) -> Loaded:
        """Questions with a short answer; the pool is the same list."""
        rows = [row for row in raw.json_lines(self.spec.files[0]) if _type(row) not in ("long_answer", "unanswerable")]
        documents = [_document(row) for row in rows]
        if len({document.id for document in documents}) != len(documents):
            raise UserError(f"{raw.path(self.spec.files[0])}: two questions have the same example_id")
        return Loaded(documents, documents)

    def score(self, document: Document, output: str) -> Metrics:
        """One record, under the name of every metric: what the aggregations need."""
        prediction = _binary_answer(output) if document.fields["type"] == "binary" else output
        golds = document.fields["golds"]
        record = {
            "prediction": prediction,
            "em": float(any(normalise_answer(gold) == normalise_answer(prediction) for gold in golds)),
            "f1": max(_word_f1(prediction, gold) for gold in golds),
            "answerable": set(golds) != {""},
            "answered": bool(prediction),
        }
        return {**dict.fromkeys(self.aggregations, record), "invalid": float(not normalise_answer(prediction))}


def _document(row: Row) -> Document:
    query = row["queries"]["pt"]
    answer = _aliases(row, missing="N/A")[0]
    text = f"Pergunta: {query}{'' if query.endswith('?') else '?'}\nResposta:"
    return Document(str(row["example_id"]), text, f" {_YES_NO.get(answer, answer)}",
                    fields={"type": _type(row), "golds": _aliases(row, missing="")})


def _type(row: Row) -> str:
    return row["answers"]["pt"][0]["type"]


def _aliases(row: Row, missing: str) -> list[str]:
    """All forms of all answers, each once, in code-point order; `missing` stands for an empty one."""
    answers = row["answers"]["pt"]
    return sorted({form for answer in answers for form in (answer["text"] or missing, *(answer.get("aliases") or ()))})


def _binary_answer(output: str) -> str:
    """yes or no as the output begins (`simples` is a yes), else empty."""
    return next((answer for answer, form in _BINARY_ANSWERS if form.match(output)), "")


def _word_f1(prediction: str, gold: str) -> float:
    """F1 of the words, counted with repetition."""
    predicted, reference = normalise_answer(prediction).split(), normalise_answer(gold).split()
    if not predicted or not reference:
        return float(predicted == reference)
    return 2 * (Counter(predicted) & Counter(reference)).total() / (len(predicted) + len(reference))


def _percent(values: Sequence[float]) -> float:
    return round(100 * mean(values), 2) if values else math.nan
