"""Winograd schemas: which of two continuations resolves the pronoun?"""

from __future__ import annotations

import re

from evaluation.poeta.raw import RawData, Row
from evaluation.poeta.task import Cloze, Document, Loaded, Metrics, Task

_ANSWER_FORMS = [re.compile(r"([AB])\."), re.compile(r"([AB])")]


class Wsc(Task):
    """Two options after a common beginning; the answer is a letter with a dot."""

    def load(self, raw: RawData) -> Loaded:
        """All records; the pool is the same list."""
        documents = [_document(row) for row in raw.json(self.spec.files[0])]
        return Loaded(documents, documents)

    def score(self, document: Document, output: str) -> Metrics:
        """The last `A.` or `B.`; else the last capital A or B, inside words too."""
        letters = next((found for form in _ANSWER_FORMS if (found := form.findall(output))), [])
        return {"acc": float(bool(letters) and f"{letters[-1]}." == document.gold), "invalid": float(not letters)}


def _document(row: Row) -> Document:
    correct, incorrect = row["manually_fixed_correct_sentence"], row["manually_fixed_incorrect_sentence"]
    position = _end_of_common_words(correct, incorrect)
    is_correct_first = row["question_id"] % 2 == 0
    first, second = (correct, incorrect) if is_correct_first else (incorrect, correct)
    common, endings = correct[:position], (first[position:], second[position:])
    text = f"{common}\nA.{endings[0]}\nB.{endings[1]}\nResposta:"
    return Document(row["question_id"], text, " A." if is_correct_first else " B.", options=(" A.", " B."),
                    cloze=Cloze(common, endings) if all(endings) else None)


def _end_of_common_words(first: str, second: str) -> int:
    """Characters up to the first word in which two sentences differ, with one space between words."""
    length = 0
    for word, other in zip(first.split(), second.split(), strict=False):
        if word != other:
            break
        length += len(word) + 1
    return max(0, length - 1)
