"""Questions about university rules, answered with a span of a passage."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from evaluation.poeta.families.squad import normalise_answer
from evaluation.poeta.metrics import mean
from evaluation.poeta.raw import RawData
from evaluation.poeta.table import DATA
from evaluation.poeta.task import Aggregation, Document, Loaded, Metrics, Task
from megatron_ext.errors import UserError

LONG_DOCUMENTS = frozenset({"bd6b3b2b1c7b4c49a3affa5ac5b54f31", "568a6fa71815493e865cc15dc4ea5a26"})


def exact_of(prediction: str, answers: Sequence[str]) -> float:
    """Whether the prediction equals an answer after normalisation."""
    return float(any(normalise_answer(prediction) == normalise_answer(answer) for answer in answers))


def f1_of(prediction: str, answers: Sequence[str]) -> float:
    """Best F1 over the answers of their *sets* of words: repeating a word changes nothing."""
    return max(_word_set_f1(prediction, answer) for answer in answers)


def mean_exact(pairs: Sequence[tuple[str, list[str]]]) -> float:
    """Mean over [output, answers] pairs."""
    return mean([exact_of(*pair) for pair in pairs])


def mean_f1(pairs: Sequence[tuple[str, list[str]]]) -> float:
    """Mean over [output, answers] pairs."""
    return mean([f1_of(*pair) for pair in pairs])


class Faquad(Task):
    """Extractive question answering; the examples are a fixed subset of the train file."""

    aggregations: ClassVar[Mapping[str, Aggregation]] = {"exact": mean_exact, "f1": mean_f1}

    def load(self, raw: RawData) -> Loaded:
        """Train file at the official positions, and the development file."""
        train, development = (_flatten(raw.json(name)) for name in self.spec.files)
        positions = json.loads((DATA / "faquad_train_indices.json").read_text())
        if len(train) <= max(positions):
            raise UserError(f"{raw.path(self.spec.files[0])} holds {len(train)} questions and more than "
                            f"{max(positions)} are needed; it is cut short")
        return Loaded(development, [train[position] for position in positions])

    def num_shots(self, document: Document) -> int:
        """Two long documents get one example less."""
        return self.spec.num_fewshot - (document.id in LONG_DOCUMENTS)

    def score(self, document: Document, output: str) -> Metrics:
        """Pairs [output, answers], from which the aggregations compute their means."""
        pair = [output, document.fields["answers"]]
        return {"exact": pair, "f1": pair, "invalid": float(not normalise_answer(output))}


def _flatten(squad: Mapping[str, Any]) -> list[Document]:
    documents = []
    for paragraph in (paragraph for article in squad["data"] for paragraph in article["paragraphs"]):
        for question in paragraph["qas"]:
            answers = [answer["text"] for answer in question["answers"]]
            text = f"Contexto: {paragraph['context']}\nPergunta: {question['question']}\nResposta:"
            documents.append(Document(question["id"], text, f" {answers[0]}", fields={"answers": answers}))
    return documents


def _word_set_f1(prediction: str, answer: str) -> float:
    predicted, reference = set(normalise_answer(prediction).split()), set(normalise_answer(answer).split())
    if not reference:
        return float(not predicted)
    return 2 * len(predicted & reference) / (len(predicted) + len(reference))
