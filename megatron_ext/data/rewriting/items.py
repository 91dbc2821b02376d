"""From documents to items: the chunks of a document, each in every style, and what is asked of the rewriter for one."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from megatron_ext.data.rewriting.checking.lexicon import load_lexicon
from megatron_ext.data.rewriting.chunking import CountTokens, split_into_chunks
from megatron_ext.data.rewriting.engines.interface import Request
from megatron_ext.data.rewriting.prompts import Order, Prompt
from megatron_ext.data.rewriting.settings import RewriteSettings

FitsModel = Callable[[str, int], bool]
"""Whether the model can hold the prompts for a source text of so many tokens, and their completions."""


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
    scores: tuple[tuple[str, float], ...] = ()
    """(name, value) of the document's scores in the selection."""

    def place(self, order: Order) -> tuple[str | int, ...]:
        """Sort key: longest first, and side by side what shares the beginning of its prompt."""
        place = (-self.num_source_tokens, self.document_id, self.chunk, self.style)
        return place if order == "document_first" else (self.style, *place)


@dataclass(frozen=True)
class Asker:
    """All that decides what the rewriter is asked for."""

    prompts: dict[str, Prompt]
    settings: RewriteSettings
    model_identity: str
    """Content hash or name of the rewriter."""

    def request(self, item: Item, attempt: int) -> Request:
        """What the engine is asked for."""
        prompt = self.prompts[item.style]
        return Request(self._key(item, prompt, attempt), prompt.render(item.source, self.settings.order),
                       request_seed(self.settings.seed, item, attempt),
                       max_new_tokens(self.settings, item.num_source_tokens))

    def place(self, item: Item) -> tuple[str | int, ...]:
        """Sort key of the order in which items are asked for."""
        return item.place(self.settings.order)

    def _key(self, item: Item, prompt: Prompt, attempt: int) -> str:
        """Names an answer: by document, chunk, style, prompt, model, sampling, and the attempt."""
        source = hashlib.sha256(item.source.encode()).hexdigest()
        values = [item.document_id, item.chunk, source, item.style, prompt.version, prompt.sha256, self.settings.order,
                  self.model_identity, self.settings.sampling.model_dump(), self.settings.seed, attempt]
        return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:32]


def request_seed(seed: int, item: Item, attempt: int) -> int:
    """A seed of its own for each request, whatever else is asked for in the same run: 63 bits."""
    key = json.dumps([seed, item.document_id, item.chunk, item.style, attempt])
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") >> 1


def max_new_tokens(settings: RewriteSettings, num_source_tokens: int) -> int:
    """Tokens that a completion may have."""
    return max(settings.min_new_tokens, math.ceil(settings.max_new_tokens_ratio * num_source_tokens))


def document_items(document_id: str, text: str, settings: RewriteSettings, count_tokens: CountTokens,
                   fits_model: FitsModel, scores: tuple[tuple[str, float], ...] = ()) -> Iterator[Item]:
    """The items of one document, chunk by chunk, each in all styles."""
    punkt = load_lexicon(settings.language).punkt
    chunks = [chunk for chunk in document_chunks(text, settings.chunk_tokens, count_tokens, fits_model, punkt)
              if chunk.strip()]
    taken = chunks[:settings.max_chunks_per_document]
    for index, (chunk, size) in enumerate(zip(taken, count_tokens(taken), strict=True)):
        for style in settings.styles:
            yield Item(document_id, index, len(chunks), style, chunk, int(size), scores)


def document_chunks(text: str, bound: int, count_tokens: CountTokens, fits_model: FitsModel,
                    punkt: str) -> Iterator[str]:
    """Chunks of at most `bound` tokens that the model can hold; what it cannot is split further, never cut off."""
    chunks = split_into_chunks(text, bound, count_tokens, punkt)
    for chunk, size in zip(chunks, count_tokens(chunks), strict=True):
        if bound > 1 and not fits_model(chunk, int(size)):
            yield from document_chunks(chunk, bound // 2, count_tokens, fits_model, punkt)
        else:
            yield chunk
