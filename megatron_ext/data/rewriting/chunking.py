"""Lossless chunking: `"".join(split_into_chunks(text, …)) == text`, at the coarsest boundaries that meet the bound.

A paragraph that fits is never cut. A longer one is cut at its lines, a longer line at its sentences (as Punkt finds
them in its language), a longer sentence between words, a longer word between characters.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise

from megatron_ext.data.rewriting.packs import sentence_splitter

CountTokens = Callable[[Sequence[str]], Sequence[int]]
"""Number of tokens of each text."""

_PARAGRAPH_END = re.compile(r"\n[^\S\n]*\n\s*")
_LINE_END = re.compile(r"\n\s*")
_WORD_END = re.compile(r"\s+")


def split_into_chunks(text: str, max_tokens: int, count_tokens: CountTokens, punkt: str) -> list[str]:
    """Split `text` into as few pieces of at most `max_tokens` as its boundaries allow, evenly filled.

    A piece's size is the sum over the units it is made of, which its own count does not exceed but by a token or two
    (tokenizers merge across units, never the other way round, except at word starts). Only a single character may be
    larger than the bound. A text without tokens (empty) gives no chunk. `punkt` names the language in English.
    """
    splitters = [_paragraphs, _lines, partial(_sentences, punkt=punkt), _words, list]
    units = _split_units([text], max_tokens, count_tokens, splitters)
    sizes = [size for _, size in units]
    bound = _smallest_bound(sizes, max_tokens)
    return ["".join(unit for unit, _ in units[start:end]) for start, end in _pack(sizes, bound)]


def _split_units(texts: Sequence[str], max_tokens: int, count_tokens: CountTokens,
                 splitters: Sequence[Callable[[str], list[str]]]) -> list[tuple[str, int]]:
    """(unit, tokens) in order: what is too large is split by the first splitter, its parts by the next ones."""
    texts = [text for text in texts if text]
    units = []
    for text, size in zip(texts, count_tokens(texts), strict=True):
        if size <= max_tokens or not splitters:
            units.append((text, int(size)))
        else:
            units += _split_units(splitters[0](text), max_tokens, count_tokens, splitters[1:])
    return units


def _pack(sizes: Sequence[int], bound: int) -> list[tuple[int, int]]:
    """Ranges of consecutive units, filled greedily up to `bound`."""
    ranges: list[tuple[int, int]] = []
    start = total = 0
    for index, size in enumerate(sizes):
        if index > start and total + size > bound:
            ranges.append((start, index))
            start, total = index, 0
        total += size
    return [*ranges, (start, len(sizes))] if sizes else []


def _smallest_bound(sizes: Sequence[int], max_tokens: int) -> int:
    """The smallest bound that needs no more chunks than `max_tokens`: no chunk is left as a short tail."""
    fewest = len(_pack(sizes, max_tokens))
    low, high = 1, max_tokens
    while low < high:
        middle = (low + high) // 2
        if len(_pack(sizes, middle)) <= fewest:
            high = middle
        else:
            low = middle + 1
    return high


def _paragraphs(text: str) -> list[str]:
    return _cut_after(text, _PARAGRAPH_END)


def _lines(text: str) -> list[str]:
    return _cut_after(text, _LINE_END)


def _sentences(text: str, punkt: str) -> list[str]:
    starts = [start for start, _ in sentence_splitter(punkt).span_tokenize(text)]
    return _cut_at(text, starts[1:])  # white space between sentences stays with the one before it


def _words(text: str) -> list[str]:
    return _cut_after(text, _WORD_END)


def _cut_after(text: str, boundary: re.Pattern[str]) -> list[str]:
    return _cut_at(text, [match.end() for match in boundary.finditer(text)])


def _cut_at(text: str, places: Sequence[int]) -> list[str]:
    edges = [0, *places, len(text)]
    return [text[start:end] for start, end in pairwise(edges) if end > start]
