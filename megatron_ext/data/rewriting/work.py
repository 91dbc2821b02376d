"""The work of rewriting: a fixed list of batches, each answered once and written whole, so that a run can go on.

Round 0 asks for every item; each further round asks again, with other seeds, for those that failed. Items are ordered
longest first, which fills a batch with equal lengths and leaves no long one for the end. A round's batches follow from
the results of the round before, hence a run that was killed makes the same batches again and takes the results that it
finds. The completions of a batch are one file; everything else is computed from them.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from megatron_ext.artifacts import write_json
from megatron_ext.data.rewriting.checks import Thresholds, Verdict, check
from megatron_ext.data.rewriting.chunking import CountTokens
from megatron_ext.data.rewriting.engines import Completion, Engine, Request
from megatron_ext.data.rewriting.prompts import Order, Prompt
from megatron_ext.data.rewriting.wrapping import strip_wrapping
from megatron_ext.progress import Progress

COMPLETIONS_FOLDER = "completions"


@dataclass(frozen=True)
class Item:
    """One chunk of a document to be rewritten in one style."""

    document_id: str
    chunk: int
    num_chunks: int
    """Chunks of the whole document."""
    style: str
    source: str
    num_source_tokens: int


@dataclass(frozen=True)
class Attempt:
    """One answer of the rewriter for an item, judged."""

    item: Item
    attempt: int
    """0 for the first try."""
    seed: int
    completion: Completion
    verdict: Verdict
    num_tokens: int
    """Of the stripped text, by the training tokenizer."""

    @property
    def accepted(self) -> bool:
        """Whether no check speaks against it."""
        return not self.verdict.reasons


@dataclass(frozen=True)
class Rewriter:
    """All that decides how items are asked for and judged."""

    prompts: dict[str, Prompt]
    thresholds: dict[str, Thresholds]
    order: Order
    max_new_tokens_ratio: float
    min_new_tokens: int
    batch_size: int
    retries: int
    seed: int
    count_tokens: CountTokens
    open_engine: Callable[[], Engine]
    """Called once, when the first batch has to be computed."""

    def request(self, item: Item, attempt: int) -> Request:
        """What the engine is asked for."""
        limit = max(self.min_new_tokens, math.ceil(self.max_new_tokens_ratio * item.num_source_tokens))
        return Request(self.prompts[item.style].render(item.source, self.order),
                       request_seed(self.seed, item, attempt), limit)

    def judge(self, items: Sequence[Item], attempt: int, completions: Sequence[Completion]) -> list[Attempt]:
        """Check the answers."""
        sizes = self.count_tokens([strip_wrapping(completion.text) for completion in completions])
        return [
            Attempt(item, attempt, request_seed(self.seed, item, attempt), completion,
                    check(item.source, completion.text, finish_reason=completion.finish_reason,
                          length_ratio=int(size) / item.num_source_tokens, thresholds=self.thresholds[item.style]),
                    int(size))
            for item, completion, size in zip(items, completions, sizes, strict=True)
        ]


def request_seed(seed: int, item: Item, attempt: int) -> int:
    """A seed of its own for each request, whatever else is asked for in the same run: 63 bits."""
    key = json.dumps([seed, item.document_id, item.chunk, item.style, attempt])
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


def run(rewriter: Rewriter, items: Sequence[Item], folder: Path) -> list[Attempt]:
    """All attempts for all items; goes on from the completions that `folder` holds."""
    ordered = sorted(items, key=lambda item: _place(item, rewriter.order))
    engine: Engine | None = None

    def lazy_engine() -> Engine:
        nonlocal engine
        engine = engine or rewriter.open_engine()
        return engine

    attempts: list[Attempt] = []
    for attempt in range(1 + rewriter.retries):
        judged = list(_run_round(rewriter, ordered, attempt, folder / f"attempt_{attempt}", lazy_engine))
        attempts += judged
        ordered = [one.item for one in judged if not one.accepted]
    return attempts


def _place(item: Item, order: Order) -> tuple[str | int, ...]:
    """Sort key: longest first, and side by side what shares the beginning of its prompt."""
    place = (-item.num_source_tokens, item.document_id, item.chunk, item.style)
    return place if order == "document_first" else (item.style, *place)


def _run_round(rewriter: Rewriter, items: Sequence[Item], attempt: int, folder: Path,
               engine: Callable[[], Engine]) -> Iterator[Attempt]:
    folder.mkdir(parents=True, exist_ok=True)
    batches = [items[start:start + rewriter.batch_size] for start in range(0, len(items), rewriter.batch_size)]
    files = [folder / f"batch_{index:06d}.json" for index in range(len(batches))]
    num_done = sum(len(batch) for batch, file in zip(batches, files, strict=True) if file.exists())
    progress = Progress("rewrite" if attempt == 0 else f"rewrite, retry {attempt}", len(items), "chunks",
                        rate_unit="output tokens", already_done=num_done)
    for batch, file in zip(batches, files, strict=True):
        if not file.exists():
            answers = engine().generate([rewriter.request(item, attempt) for item in batch])
            write_json(file, [asdict(answer) for answer in answers])
            progress.advance(len(batch), sum(answer.num_tokens for answer in answers))
        completions = [Completion(**values) for values in json.loads(file.read_text(encoding="utf-8"))]
        yield from rewriter.judge(batch, attempt, completions)
