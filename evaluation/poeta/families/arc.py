"""School science questions with lettered choices."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import ClassVar

from evaluation.poeta.metrics import mean
from evaluation.poeta.raw import RawData
from evaluation.poeta.task import Aggregation, Document, Loaded, Metrics, Task, cloze

_LETTER_WITH_DOT = re.compile(r"[a-d]\.")


class Arc(Task):
    """The answer is a letter, without a dot."""

    aggregations: ClassVar[Mapping[str, Aggregation]] = {"acc": mean, "unknown_pred": mean}

    def load(self, raw: RawData) -> Loaded:
        """Questions whose choices all have letters."""
        documents = []
        for row in raw.split(self.spec.splits[0]):
            labels, texts = row["choices"]["label"], row["choices"]["text"]
            if all(label.isalpha() for label in labels):
                options = [f"{label}. {text}" for label, text in zip(labels, texts, strict=True)]
                text = "\n".join([row["question"], *options, "Resposta:"])
                documents.append(Document(row["id"], text, f" {row['answerKey']}",
                                          options=tuple(f" {label}" for label in labels),
                                          cloze=cloze(f"{row['question']}\nResposta:", texts),
                                          fields={"labels": list(labels)}))
        return Loaded(documents, documents)

    def score(self, document: Document, output: str) -> Metrics:
        """The whole output, or else its first `a.` to `d.`, inside words too. `unknown_pred` is always 0 upstream."""
        prediction, gold = output.strip().lower(), document.gold.lower()
        found = _LETTER_WITH_DOT.search(prediction)
        right = prediction == gold or (found is not None and found.group()[0] == gold)
        is_label = prediction in [label.lower() for label in document.fields["labels"]]
        return {"acc": float(right), "unknown_pred": 0.0, "invalid": float(not is_label and found is None)}
