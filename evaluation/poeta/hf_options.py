"""Likelihoods of options with a Hugging Face model: options share the keys and values of their prompt.

What a question's options have in common, prompt and first tokens, is read once (its stem); the rest of each option is
read as a row of its own behind a copy of the stem's keys and values. A free answer is all stem.
"""

# b: questions read together; s: tokens of the longest stem; t: of the longest rest; v: vocabulary

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import log_softmax
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from evaluation.poeta.likelihood import EncodedQuestion, OptionScores

CPU_TOKENS = 512
"""A CPU gains nothing from reading more tokens at a time, and loses what is padding."""


@dataclass(frozen=True)
class _Rest:
    """What an option has beyond its question's stem."""

    question: int
    """Position in the batch."""
    tokens: list[int]


class OptionScorer:
    """Scores options in float32, whatever the model computes in.

    Args:
        model: a causal model of transformers.
        pad_token_id: any token; what stands there decides nothing.
        max_rows: sequences that are read together.
    """

    def __init__(self, model: Any, pad_token_id: int, max_rows: int) -> None:
        self.model = model
        self.pad_token_id = pad_token_id
        self.max_rows = max_rows
        self.has_cache = _has_rows_of_keys(model)
        self._takes = inspect.signature(model.forward).parameters

    @torch.inference_mode()
    def score(self, questions: Sequence[EncodedQuestion]) -> list[OptionScores]:
        """Likelihoods, in the order of the questions."""
        if not self.has_cache:
            return [question.scores([self._read(single)[0][0] for single in _singles(question)])
                    for question in questions]
        nats = [one for batch in self._batches(questions) for one in self._read(batch)]
        return [question.scores(one) for question, one in zip(questions, nats, strict=True)]

    def _batches(self, questions: Sequence[EncodedQuestion]) -> Iterator[list[EncodedQuestion]]:
        """Questions in their order, as many together as can be read at once."""
        batch: list[EncodedQuestion] = []
        for question in questions:
            longest = max(len(one.prompt) + one.num_common for one in [*batch, question])
            fits = self.model.device.type != "cpu" or (len(batch) + 1) * longest <= CPU_TOKENS
            if batch and (len(batch) == self.max_rows or not fits):
                yield batch
                batch = []
            batch.append(question)
        if batch:
            yield batch

    def _read(self, batch: Sequence[EncodedQuestion]) -> list[list[float]]:
        """Nats of every option of every question."""
        common = [question.num_common for question in batch]
        stems = [question.prompt + question.options[0][:number] for question, number in zip(batch, common, strict=True)]
        ids, mask = self._padded(stems, on_the_left=True)
        cache = DynamicCache(config=self.model.config) if self.has_cache else None
        log_p = self._log_p(ids, mask, mask.cumsum(dim=1) - 1, cache, keep=max(common) + 1)
        rests = [_Rest(position, option[common[position]:])
                 for position, question in enumerate(batch) for option in question.options]
        of_stems = [-_sum_of(log_p[position, -number - 1:-1], question.options[0][:number])
                    for position, (question, number) in enumerate(zip(batch, common, strict=True))]
        nats = [of_stems[rest.question] - float(log_p[rest.question, -1, rest.tokens[0]]) for rest in rests]
        longer = [position for position, rest in enumerate(rests) if len(rest.tokens) > 1]
        for start in range(0, len(longer), self.max_rows):
            chosen = longer[start:start + self.max_rows]
            for position, value in zip(chosen, self._read_rests([rests[one] for one in chosen], mask, cache),
                                       strict=True):
                nats[position] += value
        values = iter(nats)
        return [[next(values) for _ in question.options] for question in batch]

    def _read_rests(self, rests: Sequence[_Rest], mask: torch.Tensor, cache: Any) -> list[float]:
        """Nats of the rests but for their first tokens; `mask` `[b, s]` and the cache are those of the stems."""
        ids, own_mask = self._padded([rest.tokens[:-1] for rest in rests], on_the_left=False)
        rows = torch.tensor([rest.question for rest in rests], device=ids.device)
        positions = mask.sum(dim=1)[rows, None] + torch.arange(ids.shape[1], device=ids.device)
        log_p = self._log_p(ids, torch.cat([mask[rows], own_mask], dim=1), positions, _rows_of(cache, rows),
                            keep=ids.shape[1])
        return [-_sum_of(one, rest.tokens[1:]) for one, rest in zip(log_p, rests, strict=True)]

    def _log_p(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, cache: Any,
               keep: int) -> torch.Tensor:
        """Log-probabilities of the next token after the last `keep` positions, `[rows, keep, v]`, float32."""
        more = {"position_ids": positions.clamp(min=0), "logits_to_keep": keep}
        output = self.model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=cache is not None,
                            **{name: value for name, value in more.items() if name in self._takes})
        return log_softmax(output.logits[:, -keep:].float(), dim=-1)

    def _padded(self, rows: Sequence[Sequence[int]], on_the_left: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask `[rows, longest]`."""
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), self.pad_token_id)
        mask = torch.zeros_like(ids)
        for position, row in enumerate(rows):
            place = slice(longest - len(row), None) if on_the_left else slice(len(row))
            ids[position, place], mask[position, place] = torch.tensor(row), 1
        return ids.to(self.model.device), mask.to(self.model.device)


def _has_rows_of_keys(model: Any) -> bool:
    """Whether a prompt's state is keys and values, of which rows can be taken; else every option is read whole."""
    return model._supports_default_dynamic_cache() and all(
        isinstance(layer, DynamicLayer) for layer in DynamicCache(config=model.config).layers)


def _sum_of(log_p: torch.Tensor, tokens: Sequence[int]) -> float:
    """Sum of the log-probabilities `[t or more, v]` of tokens, in float64."""
    chosen = torch.tensor(tokens, device=log_p.device, dtype=torch.long)
    return float(log_p[:len(tokens)].gather(1, chosen[:, None]).double().sum())


def _rows_of(cache: DynamicCache, rows: torch.Tensor) -> DynamicCache:
    """A cache of chosen rows, which may be repeated; the cache itself stays as it is."""
    chosen = copy.copy(cache)
    chosen.layers = [copy.copy(layer) for layer in cache.layers]
    chosen.batch_select_indices(rows)
    return chosen


def _singles(question: EncodedQuestion) -> Iterator[list[EncodedQuestion]]:
    """Each option as the only one of a question of its own."""
    for option in question.options:
        yield [EncodedQuestion(question.prompt, [option], 0, question.splits_token)]
