"""Tasks in BIG-bench's JSON format: options with letters, or an answer that is spelled out.

Few-shot examples come from all documents, the evaluated one included.
"""

from __future__ import annotations

import random
import re
import string
from typing import Any

from evaluation.poeta.raw import RawData, Row
from evaluation.poeta.task import Document, Loaded, Metrics, Task, cloze
from megatron_ext.errors import UserError

LETTERS = string.ascii_uppercase[:13]
LOADING_SEED = 1234
_LETTER_ANSWER = re.compile(r"[A-Z]\)")


class BigBench(Task):
    """Common ground: reading examples."""

    def load(self, raw: RawData) -> Loaded:
        """Documents out of the examples; the pool is the same list."""
        documents = [document for row in self.examples(raw) if (document := self.document(row)) is not None]
        return Loaded(documents, documents)

    def examples(self, raw: RawData) -> list[Row]:
        """Examples of all files; one without an id gets its index."""
        rows = [row for name in self.spec.files for row in raw.json(name)["examples"]]
        return [{"id": index, **row} for index, row in enumerate(self.arrange(rows))]

    def arrange(self, rows: list[Row]) -> list[Row]:
        """The order of the examples."""
        return rows

    def document(self, row: Row) -> Document | None:
        """An example as a document; None: it is left out."""
        raise NotImplementedError

    def option_name(self, key: str) -> str:
        """An option as it stands in the prompt."""
        return self.spec.option_names.get(key, key)


class Choice(BigBench):
    """Options with letters; the answer is a letter with a parenthesis."""

    def document(self, row: Row) -> Document | None:
        """Options in the order of the file; the last one with score 1 is right; fewer than two: left out."""
        options = list(row["target_scores"].items())
        if len(options) < 2:
            return None
        options = self.arrange_options(options)
        right = [index for index, (_, score) in enumerate(options) if score == 1]
        if not right or right[-1] >= len(LETTERS):
            raise UserError(f"{self.spec.name}: example {row['id']!r} has no right option among its first "
                            f"{len(LETTERS)}")
        names = [self.option_name(key) for key, _ in options][:len(LETTERS)]
        lines = [f"{letter}) {name}\n" for letter, name in zip(LETTERS, names, strict=False)]
        question = f"{self.spec.prefix}{row['input']}\n"
        return Document(row["id"], f"{question}{''.join(lines)}Resposta:", f" {LETTERS[right[-1]]})",
                        options=tuple(f" {letter})" for letter in LETTERS[:len(names)]),
                        cloze=cloze(f"{question}Resposta:", names))

    def arrange_options(self, options: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        """The order of the options."""
        return options

    def score(self, document: Document, output: str) -> Metrics:
        """The whole output or else its first capital with a parenthesis."""
        prediction = output.strip()
        found = _LETTER_ANSWER.search(prediction)
        right = prediction.lower() == document.gold.lower() or (found and found.group() == document.gold)
        return {"acc": float(bool(right)), "invalid": float(not right and found is None)}


class Spelled(BigBench):
    """The answer is a word of the task's classes."""

    def document(self, row: Row) -> Document:
        """The first option with score 1 is the answer."""
        right = next((key for key, score in row["target_scores"].items() if score == 1), None)
        if right is None:
            raise UserError(f"{self.spec.name}: example {row['id']!r} has no right answer")
        return Document(row["id"], f"{self.spec.prefix}{row['input']}\nResposta:", f" {self.option_name(right)}",
                        options=tuple(f" {name}" for name in self.spec.classes))

    def score(self, document: Document, output: str) -> Metrics:
        """The leftmost class in the output counts, inside words too."""
        found = re.search("|".join(name.lower() for name in self.spec.classes), output.strip().lower())
        return {"acc": float(found is not None and found.group() == document.gold.lower()),
                "invalid": float(found is None)}


class Bbq(Choice):
    """Several files in one: their examples are shuffled together before they get their ids."""

    def arrange(self, rows: list[Row]) -> list[Row]:
        """Shuffled with the seed that the official harness gives its global generator."""
        rows = list(rows)
        random.Random(LOADING_SEED).shuffle(rows)
        return rows


class ShuffledOptions(Choice):
    """The options of each example are shuffled before they get their letters."""

    def load(self, raw: RawData) -> Loaded:
        """One generator for all examples, in the order of the file."""
        self._generator = random.Random(LOADING_SEED)
        return super().load(raw)

    def arrange_options(self, options: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        """Shuffled; examples that are left out draw nothing."""
        self._generator.shuffle(options)
        return options


