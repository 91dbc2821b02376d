"""How similar are two sentences, from 1 to 5?"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

from evaluation.poeta.metrics import mean, pearson, pearson_or_zero
from evaluation.poeta.raw import RawData, Row
from evaluation.poeta.table import TaskSpec
from evaluation.poeta.task import Aggregation, Document, Loaded, Metrics, Task

LOWEST, MIDDLE, HIGHEST = 1.0, 3.0, 5.0


class AssinSts(Task):
    """The answer is a number; the gold is the annotators' mean, the target its rounded form."""

    aggregations: ClassVar[Mapping[str, Aggregation]] = {"mse": mean, "pearson": pearson, "unknown_pred": mean}

    def __init__(self, spec: TaskSpec) -> None:
        super().__init__(spec)
        if spec.profile == "clean":
            self.aggregations = {**self.aggregations, "pearson": pearson_or_zero}

    def load(self, raw: RawData) -> Loaded:
        """Both splits."""
        pool, documents = ([_document(row) for row in raw.split(split)] for split in self.spec.splits)
        return Loaded(documents, pool)

    def score(self, document: Document, output: str) -> Metrics:
        """An output that is no number counts as 1.0, and its gold as 5.0: the official penalty.

        Clean: it counts as the middle of the scale, the gold stays, and numbers are kept on the scale.
        """
        try:
            prediction, gold, unknown = float(output), document.fields["score"], 0.0
        except ValueError:
            prediction, gold, unknown = 1.0, 5.0, 1.0
        if self.spec.profile == "clean":
            unknown = max(unknown, float(not math.isfinite(prediction)))
            prediction = MIDDLE if unknown else min(max(prediction, LOWEST), HIGHEST)
            gold = document.fields["score"]
        return {"mse": _square(gold - prediction), "pearson": [prediction, gold], "unknown_pred": unknown,
                "invalid": unknown}


def _document(row: Row) -> Document:
    text = f"Sentença 1: {row['premise']}\nSentença 2: {row['hypothesis']}\nResposta:"
    return Document(None, text, f" {round(row['relatedness_score'])}", fields={"score": row["relatedness_score"]})


def _square(difference: float) -> float:
    """Not `**`, which raises for large numbers."""
    return difference * difference
