"""Questions whose options are scored by likelihood, and their tokens.

The rule for tokens is that of lm-evaluation-harness (`TemplateLM._encode_pair`), so that the same requests give the
same likelihoods: prompt and option are encoded as one text, which is split at the prompt's own number of tokens; white
space at the end of a prompt belongs to the option. Where a tokenizer merges across the boundary, the option is what
remains after so many tokens, and `splits_token` says so; where nothing remains, it is encoded by itself.

A model with a context of C tokens reads at most the last C + 1 tokens of a prompt and its longest option, of which the
last is only predicted. All options of a question follow the same tokens; `num_dropped_tokens` tells what was cut off.
No special tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from megatron_ext.errors import UserError

NATS_DECIMALS = 6


@dataclass(frozen=True)
class Question:
    """A prompt and what may follow it."""

    task: str
    """Name of the task and form; batches hold questions of one of them."""
    doc_id: int
    prompt: str
    options: tuple[str, ...]
    """Continuations; each begins with what separates it from the prompt."""

    @property
    def identity(self) -> str:
        """All that decides the likelihoods, as a text that is nobody's prompt."""
        return "\0options" + json.dumps([self.prompt, *self.options])


@dataclass(frozen=True)
class OptionScores:
    """Likelihoods of the options of a question."""

    nats: list[float]
    """Negative natural logarithm of each option's probability, given the prompt."""
    num_tokens: list[int]
    num_dropped_tokens: int
    """Tokens at the beginning of the prompt that the model did not read."""
    splits_token: bool
    """Whether a token of prompt and option together spans both."""

    def as_json(self) -> dict[str, Any]:
        """The same as plain values, rounded to what float32 can tell. Raises UserError for what is no number."""
        if not all(map(math.isfinite, self.nats)):
            raise UserError("the model's likelihoods are not finite numbers: its weights are damaged, or its precision "
                            "overflows; write dtype=float32")
        return {**asdict(self), "nats": [round(nats, NATS_DECIMALS) for nats in self.nats]}


@dataclass(frozen=True)
class EncodedQuestion:
    """Token ids of a question."""

    prompt: list[int]
    options: list[list[int]]
    num_dropped_tokens: int
    splits_token: bool

    @property
    def num_common(self) -> int:
        """Leading tokens that all options share, less the last one of the shortest: they are read with the prompt."""
        shortest = min(map(len, self.options))
        shared = (position for position in range(shortest - 1)
                  if len({option[position] for option in self.options}) > 1)
        return next(shared, shortest - 1)

    def scores(self, nats: Sequence[float]) -> OptionScores:
        """With the options' likelihoods."""
        return OptionScores(list(nats), [len(option) for option in self.options], self.num_dropped_tokens,
                            self.splits_token)


def encode_questions(tokenizer: Any, questions: Sequence[Question], context_tokens: int) -> list[EncodedQuestion]:
    """Tokens of questions, see the head of this file.

    Raises UserError for an option that is longer than the context, and for one without any token.
    """
    prompts = [question.prompt.rstrip() for question in questions]
    wholes = [question.prompt + option for question in questions for option in question.options]
    heads = tokenizer(prompts, add_special_tokens=False)["input_ids"]
    encoded = iter(tokenizer(wholes, add_special_tokens=False)["input_ids"])
    return [_encode(tokenizer, question, head, [next(encoded) for _ in question.options], context_tokens)
            for question, head in zip(questions, heads, strict=True)]


def _encode(tokenizer: Any, question: Question, head: list[int], wholes: list[list[int]],
            context_tokens: int) -> EncodedQuestion:
    options = list(_options(tokenizer, question, head, wholes))
    longest = max(map(len, options))
    if not head or not min(map(len, options)):
        raise UserError(f"{question.task}, item {question.doc_id}: the prompt or an option has no tokens")
    if longest > context_tokens:
        raise UserError(f"{question.task}, item {question.doc_id}: an option of {longest:,} tokens is longer than the "
                        f"model's context of {context_tokens:,}; leave the task out")
    num_dropped = min(max(0, len(head) + longest - context_tokens - 1), len(head) - 1)
    return EncodedQuestion(head[num_dropped:], options, num_dropped,
                           any(whole[:len(head)] != head for whole in wholes))


def _options(tokenizer: Any, question: Question, head: list[int], wholes: list[list[int]]) -> Iterator[list[int]]:
    for option, whole in zip(question.options, wholes, strict=True):
        yield whole[len(head):] or tokenizer(option, add_special_tokens=False)["input_ids"]
