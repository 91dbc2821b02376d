"""Answers that survive: a language model that writes down what it has answered, and that is loaded when it is needed.

The requests of a task are sorted by length and cut into batches once, so that a batch holds the same requests whatever
else is evaluated and whether or not the run was interrupted: what a model answers may depend on its batch in the last
bits. An answer is filed under the hashes of what was asked (for likelihoods: that it is one, the prompt, every option)
and of its batch, in the journal of the run, and at the end in a cache that later evaluations of the same model with the
same settings read. So a reused answer is the very answer that would be given again.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.defaults import DEFAULT_OTHER_SEED
from lm_eval.utils import set_torch_seed

from evaluation.poeta.likelihood import OptionScores, Question
from megatron_ext.contents import hash_json
from megatron_ext.lease import LEASE, lease
from megatron_ext.progress import Progress

Key = tuple[str, str]
"""sha256 of what was asked, sha256 of the batch."""
T = TypeVar("T")


class JournalingLM(LM):
    """Wraps a model of any backend.

    Args:
        load: gives the model that does the work, one batch a call; called when the first answer is not on disk.
        journal: JSONL file of this run's answers; made if it is not there.
        batch_size: requests in a batch.
        cache: JSONL file of answers of the same model with the same settings from all runs; None: there is none.
    """

    def __init__(self, load: Callable[[], LM], journal: Path, batch_size: int, cache: Path | None = None) -> None:
        super().__init__()
        self._load = load
        self.journal = journal
        self.batch_size = batch_size
        self.cache = cache

    @cached_property
    def lm(self) -> Any:
        """The model."""
        return self._load()

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers in the order of the requests; those that are on disk are not asked for again."""
        batches = cut_into_batches(requests, self.batch_size, lambda one: (one.task_name, one.args[0], one.doc_id))
        return self._answers(requests, batches, lambda request: request.args[0],
                             lambda batch: self.lm.generate_until(batch, disable_tqdm=True), "examples")

    def score_options(self, questions: Sequence[Question]) -> list[OptionScores]:
        """Likelihoods of the options of each question, in the order of the questions."""
        batches = cut_into_batches(questions, self.batch_size, lambda one: (one.task, one.prompt, one.doc_id))
        rows = self._answers(questions, batches, lambda question: question.identity,
                             lambda batch: [one.as_json() for one in self.lm.score_options(batch)], "questions")
        return [OptionScores(**row) for row in rows]

    def count_truncated(self, prompts: Sequence[str]) -> int | None:
        """How many prompts of a task, in the order of its documents, lose tokens when text is generated; None where the
        backend does not tell. It is counted and kept by the batches of `generate_until`."""
        batches = cut_into_batches(list(enumerate(prompts)), self.batch_size, lambda one: ("", one[1], one[0]))
        counts = self._answers(batches, [[batch] for batch in batches], _identity_of_count,
                               lambda asked: [self._count_truncated([prompt for _, prompt in asked[0]])])
        return None if None in counts else sum(counts)

    def _count_truncated(self, prompts: list[str]) -> int | None:
        counter = getattr(self.lm, "count_truncated", None)
        return counter(prompts) if counter else None

    def _answers(self, requests: Sequence[T], batches: Sequence[list[T]], identity: Callable[[T], str],
                 ask: Callable[[list[T]], Sequence[Any]], unit: str | None = None) -> list[Any]:
        """What `ask` says of each request, batch by batch, as far as it is not on disk."""
        kept = read_answers(self.cache) if self.cache else {}
        answers = kept | read_answers(self.journal)
        keyed = [(batch, keys_of(list(map(identity, batch)))) for batch in batches]
        unanswered = [(batch, keys) for batch, keys in keyed if not all(key in answers for key in keys)]
        num_done = len(requests) - sum(len(batch) for batch, _ in unanswered)
        progress = Progress("evaluate", len(requests), unit, already_done=num_done) if unit else None
        for batch, keys in unanswered:
            rows = dict(zip(keys, ask(batch), strict=True))
            append_answers(self.journal, rows)
            answers.update(rows)
            if progress:
                progress.advance(len(batch))
        if self.cache:
            wanted = {key: answers[key] for _, keys in keyed for key in keys if key not in kept}
            with suppress(OSError):  # a cache that cannot be written only costs the time to answer again
                append_answers(self.cache, wanted)
        found = {id(request): answers[key] for batch, keys in keyed for request, key in zip(batch, keys, strict=True)}
        return [found[id(request)] for request in requests]

    def loglikelihood(self, requests: list[Instance]) -> NoReturn:
        """No task of PoETa V2 asks for it; see score_options."""
        raise NotImplementedError

    def loglikelihood_rolling(self, requests: list[Instance]) -> NoReturn:
        """No task of PoETa V2 asks for it."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class _Asked:
    """A request of the harness; one that is to be answered several times is asked as often."""

    request: Instance
    repetition: int

    @property
    def identity(self) -> str:
        """All that is asked, as a text that is no prompt of PoETa V2."""
        return "\0harness" + json.dumps([self.request.request_type, self.request.args, self.repetition])


class JournalingHarnessLM(JournalingLM):
    """The same for tasks of the harness itself: whatever it asks is answered by a model of its own."""

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers as the model cuts them."""
        return self._ask(requests)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """(log-probability, whether it is what the model would write) of each continuation."""
        return [(nats, is_greedy) for nats, is_greedy in self._ask(requests)]

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Log-probability of each text."""
        return self._ask(requests)

    def _ask(self, requests: Sequence[Instance]) -> list[Any]:
        asked = _numbered(requests)
        batches = cut_into_batches(asked, self.batch_size, lambda one: (
            str(one.request.task_name), str(one.request.args[0]), int(one.request.doc_id or 0)))
        return self._answers(asked, batches, lambda one: one.identity,
                             lambda batch: self._ask_model([one.request for one in batch]), "requests")

    def _ask_model(self, batch: list[Instance]) -> Sequence[Any]:
        set_torch_seed(DEFAULT_OTHER_SEED)  # a task that samples gets the same answers after an interruption
        return getattr(self.lm, batch[0].request_type)(batch, disable_tqdm=True)


def _numbered(requests: Sequence[Instance]) -> list[_Asked]:
    times: Counter[int] = Counter()
    asked = []
    for request in requests:
        asked.append(_Asked(request, times[id(request)]))
        times[id(request)] += 1
    return asked


def cut_into_batches(requests: Sequence[T], batch_size: int,
                     facts: Callable[[T], tuple[str, str, int]]) -> list[list[T]]:
    """Batches of one task's prompts of similar length, the longest first: they show at once whether memory suffices.

    Args:
        facts: (task, prompt, number of the document) of a request.
    """
    batches = []
    for task in dict.fromkeys(facts(request)[0] for request in requests):
        own = [request for request in requests if facts(request)[0] == task]
        own.sort(key=lambda request: (-len(facts(request)[1]), facts(request)[2]))
        batches += [own[start:start + batch_size] for start in range(0, len(own), batch_size)]
    return batches


def _identity_of_count(batch: Sequence[tuple[int, str]]) -> str:
    """A count of truncated prompts, as a text that is nobody's prompt."""
    return "\0truncated" + json.dumps([prompt for _, prompt in batch])


def keys_of(asked: Sequence[str]) -> list[Key]:
    """What the answers of a batch are filed under, given what its requests ask."""
    single = [hashlib.sha256(one.encode()).hexdigest() for one in asked]
    whole = hashlib.sha256("\n".join(single).encode()).hexdigest()
    return [(one, whole) for one in single]


def read_answers(path: Path) -> dict[Key, Any]:
    """The answers in a file. A line that was torn by an interruption, or changed since, does not count."""
    if not path.exists():
        return {}
    rows = [row for line in path.read_bytes().split(b"\n") if (row := _read_row(line))]
    return {(row["prompt_sha256"], row["batch_sha256"]): row["output"] for row in rows}


def _read_row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
        return row if row.pop("row_sha256") == hash_json(row) else None
    except (ValueError, KeyError, AttributeError):
        return None


def append_answers(path: Path, answers: Mapping[Key, Any]) -> None:
    """Add answers to a file, durably; other processes may do so at the same time. A torn last line is cut off first."""
    if not answers:
        return
    rows = [{"prompt_sha256": prompt, "batch_sha256": batch, "output": output}
            for (prompt, batch), output in answers.items()]
    lines = [json.dumps({**row, "row_sha256": hash_json(row)}, ensure_ascii=False) + "\n" for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    with lease(path.with_name(path.name + LEASE), path, wait=True), open(path, "a+b") as file:
        file.seek(0)
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
        file.write("".join(lines).encode())
        file.flush()
        os.fsync(file.fileno())
