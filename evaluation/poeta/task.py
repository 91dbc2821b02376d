"""What a task is made of: documents, a pool of few-shot examples, a score for each document, aggregations."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

from evaluation.poeta.metrics import mean, mean_stderr
from evaluation.poeta.raw import RawData
from evaluation.poeta.table import TaskSpec

Metrics = dict[str, Any]
Aggregation = Callable[[Sequence[Any]], float]


@dataclass(frozen=True)
class Cloze:
    """A question without the options that it offers, to be completed with the text of one of them."""

    text: str
    """What the model reads; ends where an option begins."""
    options: tuple[str, ...]
    """Texts of the document's options, in their order; each begins with what separates it from `text`."""


@dataclass(frozen=True)
class Document:
    """One item of a task."""

    id: Any
    """Id in the raw data."""
    text: str
    """What the model reads; ends where the answer begins."""
    target: str
    """The answer as it stands in a few-shot example; begins with a space."""
    exam: str | None = None
    """Exam it comes from, where examples must come from another one."""
    options: tuple[str, ...] = ()
    """Answers that the question offers, in the form of `target`; none: the answer is free."""
    cloze: Cloze | None = None
    """The question in the form in which the text of an option is its answer; none: it has no such form."""
    fields: Mapping[str, Any] = field(default_factory=dict)
    """What else its scoring needs."""

    @property
    def gold(self) -> str:
        """The answer without the space before it."""
        return self.target.strip()

    @property
    def num_options(self) -> int | None:
        """Answers that the question offers; None: the answer is free."""
        return len(self.options) or None

    @property
    def right_option(self) -> int | None:
        """Position of the answer among the options; None where it is none of them."""
        return self.options.index(self.target) if self.target in self.options else None

    @property
    def as_cloze(self) -> Document | None:
        """The cloze form as a document; None where there is none."""
        if self.cloze is None or self.right_option is None:
            return None
        return Document(self.id, self.cloze.text, self.cloze.options[self.right_option], options=self.cloze.options)


def cloze(text: str, options: Sequence[str | None]) -> Cloze | None:
    """The cloze form of a question that ends in a colon; None where an option has no text."""
    if not all(option and option.strip() for option in options):
        return None
    return Cloze(text, tuple(f" {option.strip()}" for option in options))


@dataclass(frozen=True)
class Loaded:
    """The documents of a task in the order of the raw data, before the official shuffle and limit."""

    documents: list[Document]
    pool: list[Document]

    @cached_property
    def pool_texts(self) -> Counter[str]:
        """How often each text occurs in the pool."""
        return Counter(document.text for document in self.pool)


class Task(ABC):
    """A task of PoETa V2. Subclasses are the families that share raw format, text and scoring."""

    aggregations: ClassVar[Mapping[str, Aggregation]] = {"acc": mean}
    """Metric -> aggregation over the values of the documents that have the metric."""

    def __init__(self, spec: TaskSpec) -> None:
        self.spec = spec

    @abstractmethod
    def load(self, raw: RawData) -> Loaded:
        """Documents and few-shot pool out of the raw data."""

    @abstractmethod
    def score(self, document: Document, output: str) -> Metrics:
        """Per-example metrics of an output that was cut at its first line feed and not stripped.

        `invalid` is 1.0 where no answer of the form that the task asks for was found, else 0.0.
        Values are JSON-able; those of `aggregations` that take pairs are lists [prediction, gold].
        """

    def num_shots(self, document: Document) -> int:
        """Few-shot examples in the prompt of a document."""
        return self.spec.num_fewshot

    def shot_pool(self, loaded: Loaded, document: Document) -> list[Document]:
        """What the examples of a document are drawn from, in the order of the raw data."""
        if self.spec.pool == "other_ids":
            return [candidate for candidate in loaded.pool if candidate.id != document.id]
        if self.spec.pool == "other_exams":
            return [candidate for candidate in loaded.pool if candidate.exam != document.exam]
        return loaded.pool

    def aggregate(self, examples: Sequence[Metrics]) -> dict[str, float]:
        """Final metrics over per-example metrics, with `<metric>_stderr` for plain means.

        A metric that only some documents have (an exam's year) is taken over those; one that none has is left out, and
        with the profile clean one that is undefined.
        """
        aggregated = {}
        for name, aggregation in self.aggregations.items():
            values = [metrics[name] for metrics in examples if name in metrics]
            if values:
                score = aggregation(values)
                if self.spec.profile == "clean" and not math.isfinite(score):
                    continue
                aggregated[name] = score
                if aggregation is mean:
                    aggregated[f"{name}_stderr"] = mean_stderr(values)
        return aggregated
