"""When a run stops of its own: too many requests fail, or hardly a rewrite survives. Told before the money is spent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from megatron_ext.data.rewriting.engines.interface import Completion
from megatron_ext.data.rewriting.engines.settings import AskingSettings
from megatron_ext.data.rewriting.settings import RewriteSettings
from megatron_ext.data.rewriting.window import Attempt
from megatron_ext.errors import UserError

FIRST_REQUESTS = 20
FIRST_ANSWERS = 100
_EXCERPT = 300


@dataclass
class _Style:
    """First attempts of a style."""

    num_answers: int = 0
    num_accepted: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    example: str = ""
    """A rejected answer."""


class FailureGuard:
    """Counts requests, and stops the run when too many fail."""

    def __init__(self, settings: AskingSettings, mend: str = "") -> None:
        """`mend`: what may help besides running again, a sentence without its full stop."""
        self._most, self._mend = settings.max_failed_fraction, f". {mend}" if mend else ""
        self._num_requests = self._num_failed = 0
        self._problem = ""

    def see_answer(self, completion: Completion) -> None:
        """Raises UserError when the run should not go on."""
        self._num_requests += 1
        self._num_failed += completion.failed
        self._problem = completion.problem or self._problem
        if self._num_requests >= FIRST_REQUESTS:
            self.refuse_failures()

    def refuse_failures(self) -> None:
        """The same however few requests there were: before what they gave is written."""
        if self._num_failed > self._most * self._num_requests:
            raise UserError(f"{self._num_failed:,} of {self._num_requests:,} requests failed, more than max_failed_"
                            f"fraction = {self._most:g}, the last one: {self._problem}. Run the same command again to "
                            f"go on{self._mend}")


class Guard(FailureGuard):
    """Counts verdicts as they come, too."""

    def __init__(self, settings: RewriteSettings) -> None:
        super().__init__(settings)
        self._settings = settings
        self._styles = {style: _Style() for style in settings.styles}

    def see(self, attempts: Sequence[Attempt]) -> None:
        """Raises UserError when the run should not go on."""
        for one in attempts:
            self.see_answer(one.completion)
            if one.attempt == 0:
                self._count_first(one)

    def _count_first(self, attempt: Attempt) -> None:
        style = self._styles[attempt.item.style]
        style.num_answers += 1
        style.num_accepted += attempt.accepted
        style.reasons.update(attempt.verdict.reasons)
        if attempt.verdict.reasons:
            style.example = attempt.completion.problem or attempt.completion.text
        if style.num_answers < FIRST_ANSWERS:
            return
        if style.num_accepted < self._settings.min_survived_fraction * style.num_answers:
            raise UserError(f"style {attempt.item.style}: {style.num_accepted} of the first {style.num_answers} "
                            f"answers passed the checks, {_least(self._settings)}. {_why(style.reasons.items())}. The "
                            f"last one that did not: {' '.join(style.example.split())[:_EXCERPT]!r}")


def check_summary(settings: RewriteSettings, summary: dict[str, Any]) -> None:
    """Raises UserError when hardly a chunk of a whole run or part survived."""
    styles = summary["styles"].values()
    num_chunks, num_survived = (sum(one[name] for one in styles) for name in ("num_chunks", "num_survived"))
    if num_survived < settings.min_survived_fraction * num_chunks:
        reasons: Counter[str] = sum((Counter(one["reasons"]) for one in styles), Counter())
        raise UserError(f"{num_survived:,} of {num_chunks:,} chunks survived the checks, {_least(settings)}. "
                        f"{_why(reasons.items())}")


def _least(settings: RewriteSettings) -> str:
    return (f"fewer than min_survived_fraction = {settings.min_survived_fraction:g}; look at the answers before you "
            "lower it, and at prompts, thresholds_file and rewriter")


def _why(reasons: Iterable[tuple[str, int]]) -> str:
    ranked = sorted(reasons, key=lambda pair: (-pair[1], pair[0]))
    return "Reasons: " + ", ".join(f"{reason} {count:,}" for reason, count in ranked[:6])
