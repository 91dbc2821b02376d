"""Prompts, byte for byte those of the official harness.

One generator a task, `Random(42)`, shuffles the documents and then draws the few-shot examples of each document in
turn. So the prompts of a task are built in one go and in order, whichever of them are needed.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from evaluation.poeta.table import descriptions
from evaluation.poeta.task import Document, Loaded, Task
from megatron_ext.errors import UserError

SEED = 42


@dataclass(frozen=True)
class Request:
    """A prompt and the document that it asks about."""

    doc_id: int
    """Position after the shuffle."""
    document: Document
    prompt: str
    cloze_prompt: str | None = None
    """The prompt of the cloze form, with the same shots; None where the document has no such form."""

    @property
    def prompt_sha256(self) -> str:
        """Hash of the prompt's UTF-8 bytes, hexadecimal."""
        return hashlib.sha256(self.prompt.encode()).hexdigest()


def build_requests(task: Task, loaded: Loaded, limit: int | None = None) -> list[Request]:
    """The requests of a task in evaluation order.

    Args:
        limit: take only the first `limit` of the official requests; their prompts do not depend on it.

    Raises UserError when the pool is too small for the shots (a truncated raw file).
    """
    generator = random.Random(SEED)
    documents = list(loaded.documents)
    generator.shuffle(documents)
    limits = [bound for bound in (task.spec.limit, limit) if bound is not None]
    documents = documents[: min(limits)] if limits else documents
    requests = []
    for doc_id, document in enumerate(documents):
        shots = _draw_shots(task, loaded, document, generator)
        requests.append(Request(doc_id, document, render(task, document, shots), render_cloze(document, shots)))
    return requests


def render(task: Task, document: Document, shots: Sequence[Document]) -> str:
    """Description, numbered examples, and the document's text up to where the answer begins."""
    key = task.spec.description
    return (f"{descriptions()[key]}\n\n" if key else "") + _numbered(document, shots)


def render_cloze(document: Document, shots: Sequence[Document]) -> str | None:
    """The prompt in cloze form: the same shots, and no description, which would ask for a letter."""
    form = document.as_cloze
    return form and _numbered(form, [shot.as_cloze for shot in shots if shot.as_cloze])


def _numbered(document: Document, shots: Sequence[Document]) -> str:
    if not shots:
        return document.text
    examples = "".join(
        f"Exemplo {number}:\n{shot.text}{shot.target}\n###\n" for number, shot in enumerate(shots, start=1)
    )
    return f"{examples}Exemplo {len(shots) + 1}:\n{document.text}"


def _draw_shots(task: Task, loaded: Loaded, document: Document, generator: random.Random) -> list[Document]:
    num_shots = task.num_shots(document)
    if num_shots == 0:
        return []
    pool = task.shot_pool(loaded, document)
    num_leaks = loaded.pool_texts[document.text] if task.spec.profile == "clean" else 0
    if len(pool) < num_shots + num_leaks:
        raise UserError(f"{task.spec.name}: {num_shots} few-shot examples are needed and the raw data holds "
                        f"{len(pool) - num_leaks} to choose from; a file may be cut short")
    drawn = generator.sample(pool, num_shots + num_leaks)  # any order of the rest is equally likely
    if num_leaks:
        drawn = [shot for shot in drawn if shot.text != document.text]
    return drawn[:num_shots]
