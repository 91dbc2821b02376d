"""What an engine is asked and what it answers.

An engine applies the model's chat template. Sampling is seeded per request, so that a request that is made again gives
the same completion where the engine computes deterministically.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from pydantic import Field

from megatron_ext.settings import Settings

EngineName = Literal["transformers", "vllm", "openai"]
STOP = "stop"
"""The only finish reason of a whole answer; any other is kept as the engine gave it ("length", "content_filter", …)."""
FAILED = "error"
"""Finish reason of a request that got no answer."""
UNKNOWN = "missing"
"""Finish reason of an answer whose engine gave none."""


class Sampling(Settings):
    """How tokens are drawn."""

    temperature: float = Field(0.7, ge=0)
    """0 takes the most likely token always."""
    top_p: float = Field(0.9, gt=0, le=1)
    """Only the most likely tokens that together have this probability can be drawn."""


@dataclass(frozen=True)
class Request:
    """One user message to the model."""

    key: str
    """Identity of what is asked for, unique in a run."""
    prompt: str
    seed: int
    max_new_tokens: int


@dataclass(frozen=True)
class Completion:
    """The model's answer, or why there is none."""

    text: str
    num_prompt_tokens: int | None
    """None: the engine does not tell."""
    num_tokens: int | None
    """Without the token that ends the answer; None: the engine does not tell."""
    finish_reason: str
    """STOP: the model ended its answer; "length": cut because `max_new_tokens` was reached; else as the engine says."""
    problem: str = ""
    """Why the request failed, in a line; empty: it was answered."""

    @property
    def failed(self) -> bool:
        """Whether the request got no answer."""
        return bool(self.problem)


def failure(problem: str) -> Completion:
    """What stands for the answer to a request that failed."""
    return Completion("", None, None, FAILED, problem)


Answer = tuple[Request, Completion]
TakeBatch = Callable[[], Sequence[Request]]
"""Gives requests that belong together; none when there are none for the moment."""


class Engine(Protocol):
    """What answers requests."""

    def answer(self, take: TakeBatch) -> Iterator[Answer]:
        """Answer requests in any order, each as soon as it is done; `take` is called whenever there is room for more.

        Ends when `take` gives nothing while nothing is under way. A request that cannot be answered is answered with
        `failure(…)`. Raises UserError for what would make all requests fail: a wrong key, an unknown model, a server
        that is away or serves another model.
        """
