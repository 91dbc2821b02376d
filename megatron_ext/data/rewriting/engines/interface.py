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
    """The model's answer."""

    text: str
    num_prompt_tokens: int
    num_tokens: int
    """Without the token that ends the answer."""
    finish_reason: Literal["stop", "length"]
    """"length": cut because `max_new_tokens` was reached."""


Answer = tuple[Request, Completion]
TakeBatch = Callable[[], Sequence[Request]]
"""Gives requests that belong together; none when there are none for the moment."""


class Engine(Protocol):
    """What answers requests."""

    def answer(self, take: TakeBatch) -> Iterator[Answer]:
        """Answer requests in any order, each as soon as it is done; `take` is called whenever there is room for more.

        Ends when `take` gives nothing while nothing is under way. Raises UserError for a prompt that the model cannot
        hold.
        """
