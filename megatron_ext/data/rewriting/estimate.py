"""What a run will cost, from a short calibration: a sample of the documents is rewritten for a minute."""

from __future__ import annotations

import hashlib
import heapq
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megatron_ext.data.documents import read_documents
from megatron_ext.data.rewriting.engines.cleaning import clean_answers
from megatron_ext.data.rewriting.engines.interface import Completion, Engine, Request
from megatron_ext.data.rewriting.engines.open import open_engine
from megatron_ext.data.rewriting.helpers import Tools, judge, open_tools
from megatron_ext.data.rewriting.items import Asker, Item, document_items
from megatron_ext.data.rewriting.plan import Plan, make_plan
from megatron_ext.data.rewriting.settings import RewriteSettings
from megatron_ext.errors import UserError
from megatron_ext.progress import format_seconds

CALIBRATION_SECONDS = 60.0
_SAMPLE_DOCUMENTS = 2_000


@dataclass(frozen=True)
class Calibration:
    """What the sample showed."""

    seconds: float
    num_asked: int
    num_survived: int
    num_source_tokens: int
    """Of all that was asked for."""
    num_completion_tokens: int
    num_survivor_tokens: int
    """By the training tokenizer."""


@dataclass(frozen=True)
class Estimate:
    """A whole run, by proportion to its source tokens."""

    num_source_tokens: int
    """Of the chosen documents, times the number of styles."""
    num_completion_tokens: int
    """That the engine will write, retries included."""
    num_survivor_tokens: int
    """That will pass the checks at the first attempt."""
    completion_tokens_per_second: float
    """Of one engine."""
    engine_hours: float
    gpu_hours: float

    def lines(self, num_parts: Sequence[int] = (1, 8, 64)) -> list[str]:
        """The estimate in words."""
        times = ", ".join(f"{format_seconds(3600 * self.engine_hours / parts)} with {parts}" for parts in num_parts)
        return [f"source: {self.num_source_tokens:,} tokens (documents x styles)",
                f"to be written: {self.num_completion_tokens:,} tokens, of which {self.num_survivor_tokens:,} survive "
                "at the first attempt",
                f"speed: {self.completion_tokens_per_second:,.1f} output tokens/s an engine, its start-up not counted",
                f"cost: {self.gpu_hours:,.2f} GPU-hours (hours of a device)",
                f"time, by the number of engines: {times}"]


def estimate_cost(settings: RewriteSettings, seconds: float = CALIBRATION_SECONDS) -> tuple[Calibration, Estimate]:
    """Rewrite documents drawn by a hash of their ids for about so many seconds, and extrapolate. Nothing is written.

    Raises UserError as rewrite_corpus does, and when no answer came.
    """
    plan, tools = make_plan(settings), open_tools(settings)
    items = sorted(_sample(settings, plan, tools), key=lambda item: item.place(settings.order))
    asker = Asker(tools.prompts, settings, "calibration")
    engine = open_engine(settings.engine, settings.model, settings.sampling, settings.vllm, settings.openai,
                         settings.chat_template_kwargs)
    calibration = _calibrate(engine, asker, tools, _spread(items), seconds)
    return calibration, extrapolate(settings, plan, calibration)


def extrapolate(settings: RewriteSettings, plan: Plan, calibration: Calibration) -> Estimate:
    """Retries: each round asks again for the share that failed in the one before."""
    total = sum(window.num_tokens for window in plan.windows) * len(settings.styles)
    scale = total / calibration.num_source_tokens
    failed = 1 - calibration.num_survived / calibration.num_asked
    rounds = sum(failed ** attempt for attempt in range(1 + settings.num_retries))
    num_completion_tokens = round(calibration.num_completion_tokens * scale * rounds)
    speed = calibration.num_completion_tokens / calibration.seconds
    hours = num_completion_tokens / speed / 3600
    return Estimate(total, num_completion_tokens, round(calibration.num_survivor_tokens * scale), speed, hours,
                    hours * settings.num_devices)


def _sample(settings: RewriteSettings, plan: Plan, tools: Tools) -> Iterator[Item]:
    ranked = ((hashlib.sha256(document.id.encode()).digest(), document.id, document.text)
              for document in read_documents(settings.documents)
              if plan.takes(document.id, document.num_tokens, settings))
    for _, name, text in heapq.nsmallest(_SAMPLE_DOCUMENTS, ranked):
        yield from document_items(name, text, settings, tools.count_tokens, tools.fits_model)


def _spread(items: Sequence[Item]) -> list[Item]:
    """Items of all lengths in each stretch: a minute may not reach the end of the list."""
    stride = max(1, len(items) // 16)
    return [item for first in range(stride) for item in items[first::stride]]


def _calibrate(engine: Engine, asker: Asker, tools: Tools, items: Sequence[Item], seconds: float) -> Calibration:
    size = asker.settings.batch_size
    batches = [items[start:start + size] for start in range(0, len(items), size)][::-1]
    asked: dict[str, Item] = {}
    started = time.monotonic()

    def take() -> list[Request]:
        if not batches or time.monotonic() - started > seconds:
            return []
        requests = {asker.request(item, 0): item for item in batches.pop()}
        asked.update({request.key: item for request, item in requests.items()})
        return list(requests)

    answers: list[tuple[Item, Completion]] = [(asked[request.key], completion)
                                              for request, completion in clean_answers(engine, take)]
    elapsed = time.monotonic() - started
    verdicts = judge(tools, answers)
    num_written = sum(num_tokens if completion.num_tokens is None else completion.num_tokens
                      for (_, completion), (_, num_tokens) in zip(answers, verdicts, strict=True))
    if not num_written:
        problem = next((f": {completion.problem}" for _, completion in answers if completion.failed), "")
        raise UserError(f"the calibration got no answer with text{problem}: there is nothing to estimate from")
    kept = [num_tokens for verdict, num_tokens in verdicts if not verdict.reasons]
    return Calibration(elapsed, len(answers), len(kept), sum(item.num_source_tokens for item, _ in answers),
                       num_written, sum(kept))
