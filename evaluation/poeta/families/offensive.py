"""Is a message offensive? The label may stand anywhere in the output."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from evaluation.poeta.families.labels import LabelTask
from evaluation.poeta.metrics import macro_f1, mean, weighted_f1
from evaluation.poeta.raw import RawData
from evaluation.poeta.task import Aggregation, Document, Loaded, Metrics

_LABEL = re.compile("inofensiva|ofensiva")


class OffensiveTask(LabelTask):
    """Accuracy goes by the first label found in the output, F1 by the whole output."""

    template = 'Mensagem: "{text}".\nResposta:'
    labels: ClassVar = {False: "inofensiva", True: "ofensiva"}
    aggregations: ClassVar[Mapping[str, Aggregation]] = {
        "acc": mean, "f1-macro": macro_f1, "f1-weighted": weighted_f1,
    }

    def offensive_document(self, text: Any, is_offensive: bool) -> Document:
        """A document out of a message and its label."""
        return Document(None, self.template.format(text=text), f" {self.labels[bool(is_offensive)]}",
                        options=self.options)

    def score(self, document: Document, output: str) -> Metrics:
        """See the class."""
        prediction, gold = self.normalise(output), self.normalise(document.target)
        found = _LABEL.search(prediction)
        return {
            "acc": float(found is not None and found.group() == gold),
            "f1-macro": [prediction, gold],
            "f1-weighted": [prediction, gold],
            "invalid": float(found is None),
        }


class PtHateSpeech(OffensiveTask):
    """Portuguese tweets; a document can be one of its own examples."""

    def load(self, raw: RawData) -> Loaded:
        """All rows of the CSV file, read as pandas does (a missing text prints as `nan`)."""
        import pandas

        table = pandas.read_csv(raw.path(self.spec.files[0]))
        documents = [
            self.offensive_document(text, label)
            for text, label in zip(table["text"], table["hatespeech_comb"], strict=True)
        ]
        return Loaded(documents, documents)


class HateBr(OffensiveTask):
    """Brazilian comments."""

    def load(self, raw: RawData) -> Loaded:
        """Both splits."""
        pool, documents = (
            [self.offensive_document(row["instagram_comments"], row["offensive_language"]) for row in rows]
            for rows in self.rows(raw)
        )
        return Loaded(documents, pool)
