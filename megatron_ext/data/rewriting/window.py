"""One window of work: its items go through rounds of asking and checking; every answer is noted as it comes.

Round 0 asks for every item, each further round again, with other seeds, for those that failed. What is asked follows
from the items and the answers alone: a run that was killed asks the same and takes the answers that it finds noted.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from megatron_ext.data.rewriting.engines.interface import Completion, Request
from megatron_ext.data.rewriting.engines.settings import AskingSettings


class HasReasons(Protocol):
    """A verdict on an answer."""

    @property
    def reasons(self) -> Sequence[str]:
        """What speaks against it; none: it is taken."""


Item = TypeVar("Item")
"""What is asked for: a chunk in a style, or a pair to be judged."""
Verdict = TypeVar("Verdict", bound=HasReasons)


class Asker(Protocol[Item]):
    """What is asked of the model for an item, and in which order."""

    settings: AskingSettings

    def request(self, item: Item, attempt: int) -> Request:
        """What the engine is asked for; its key is unique in a run."""

    def place(self, item: Item) -> tuple[str | int, ...]:
        """Sort key of the order in which items are asked for."""


@dataclass(frozen=True)
class Attempt(Generic[Item, Verdict]):
    """One answer of the model for an item, judged."""

    item: Item
    attempt: int
    """0 for the first try."""
    seed: int
    completion: Completion
    verdict: Verdict
    num_tokens: int
    """Of the stripped text, by the training tokenizer; 0 where nobody counts."""

    @property
    def accepted(self) -> bool:
        """Whether no check speaks against it."""
        return not self.verdict.reasons


@dataclass(frozen=True)
class Answered(Generic[Item]):
    """An answer that waits for its verdict."""

    item: Item
    request: Request
    completion: Completion


class Journal:
    """Answers by key in a file, a line each. A line that a killed run left unfinished is cut off."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.known: dict[str, Completion] = {}
        file.parent.mkdir(parents=True, exist_ok=True)
        self._stream = open(file, "ab+")  # noqa: SIM115 (closed when the window is written)
        self._read()

    def _read(self) -> None:
        self._stream.seek(0)
        lines = self._stream.read().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            self._stream.truncate(sum(map(len, lines[:-1])))
            lines.pop()
        for line in lines:
            values = json.loads(line)
            key = values.pop("key")
            self.known[key] = Completion(**values)

    def add(self, key: str, completion: Completion) -> None:
        """Note an answer, once."""
        if key not in self.known:
            self.known[key] = completion
            self._stream.write(json.dumps({"key": key, **asdict(completion)}).encode() + b"\n")
            self._stream.flush()

    def close(self) -> None:
        """Nothing more is noted."""
        self._stream.close()

    def delete(self) -> None:
        """The window is written: its answers stand there."""
        self.close()
        self.file.unlink()


class Window(Generic[Item, Verdict]):
    """A window under way."""

    def __init__(self, index: int, items: Sequence[Item], asker: Asker[Item], journal: Journal) -> None:
        self.index = index
        self.journal = journal
        self.attempts: list[Attempt[Item, Verdict]] = []
        self.is_finished = False
        self._asker = asker
        self._round = -1
        self._start_round(items)

    def take(self) -> list[Request]:
        """Requests to be asked together; none: the round is all asked."""
        return self._batches.popleft() if self._batches else []

    def put(self, request: Request, completion: Completion) -> None:
        """Note an answer. A failure is not kept: a run that is started again asks once more."""
        if not completion.failed:
            self.journal.add(request.key, completion)
        self._unjudged.append(Answered(self._items[request.key], request, completion))

    @property
    def num_unjudged(self) -> int:
        """Answers that nobody judges yet."""
        return len(self._unjudged)

    def take_answers(self) -> list[Answered[Item]]:
        """Those answers, which are now being judged."""
        answers, self._unjudged = self._unjudged, []
        return answers

    def put_verdicts(self, answers: Sequence[Answered[Item]], verdicts: Sequence[tuple[Verdict, int]]
                     ) -> tuple[list[Attempt[Item, Verdict]], list[Attempt[Item, Verdict]]]:
        """Note the verdicts; returns the attempts, and those that settle their items: accepted, or the last."""
        judged = [Attempt(one.item, self._round, one.request.seed, one.completion, verdict, num_tokens)
                  for one, (verdict, num_tokens) in zip(answers, verdicts, strict=True)]
        self.attempts += judged
        self._judged += judged
        is_last = self._round == self._asker.settings.num_retries
        if len(self._judged) == len(self._items):
            self._end_round(is_last)
        return judged, [one for one in judged if one.accepted or is_last]

    def _end_round(self, is_last: bool) -> None:
        failed = [one.item for one in self._judged if not one.accepted]
        if is_last or not failed:
            self.is_finished = True
        else:
            self._start_round(sorted(failed, key=self._asker.place))

    def _start_round(self, items: Sequence[Item]) -> None:
        self._round += 1
        requests = [self._asker.request(item, self._round) for item in items]
        self._items = {request.key: item for request, item in zip(requests, items, strict=True)}
        self._judged: list[Attempt[Item, Verdict]] = []
        self._unjudged: list[Answered[Item]] = []
        self._batches: deque[list[Request]] = deque()
        self.is_finished = not items
        for batch in _batches(requests, self._asker.settings.batch_size):
            self._ask_or_take_noted(batch)

    def _ask_or_take_noted(self, batch: list[Request]) -> None:
        known = self.journal.known
        missing = [request for request in batch if request.key not in known]
        # What transformers computes depends in its last bits on the whole batch: it is asked again as it was.
        if missing and self._asker.settings.engine == "transformers":
            self._batches.append(batch)
            return
        if missing:
            self._batches.append(missing)
        self._unjudged += [Answered(self._items[request.key], request, known[request.key]) for request in batch
                           if request.key in known]


def _batches(requests: Sequence[Request], size: int) -> list[list[Request]]:
    rest = iter(requests)
    return list(iter(lambda: list(islice(rest, size)), []))
