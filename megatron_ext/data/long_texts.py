"""Long texts in pieces: a library that encodes one whole takes hundreds of bytes of memory for each of its tokens.

A text may be cut between two words where the ids of the text around the cut are those of its two halves: words apart
do not change each other's ids. Some tokenizers keep the space between the words with the second one; others put one
before every text, so that the space is dropped. Both are tried at each cut. Where neither holds, there is no cut.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

PIECE_CHARS = 2**18
_CONTEXT_CHARS = 2_048  # encoded on both sides of a cut
_SOUGHT_CHARS = 2**16
_TRIED_CUTS = 8
_BETWEEN_WORDS = re.compile(r"(?<=[^\W\d_]) (?=[^\W\d_])")

Encode = Callable[[str], list[int]]


def pieces_of(text: str, encode: Encode) -> Iterator[str]:
    """Pieces of about PIECE_CHARS whose ids, end to end, are those of the text."""
    start = 0
    while len(text) - start > 2 * PIECE_CHARS:
        cut = _find_cut(text, start + PIECE_CHARS, encode)
        if cut is None:
            break
        yield text[start:cut[0]]
        start = cut[1]
    yield text[start:]


def _find_cut(text: str, place: int, encode: Encode) -> tuple[int, int] | None:
    """(end of a piece, begin of the next) near a place; None where no cut keeps the ids."""
    found = _BETWEEN_WORDS.finditer(text, place, place + _SOUGHT_CHARS)
    for _, space in zip(range(_TRIED_CUTS), found, strict=False):
        end = space.start()
        first, last = max(0, end - _CONTEXT_CHARS), end + _CONTEXT_CHARS
        whole, left = encode(text[first:last]), encode(text[first:end])
        for begin in (end, end + 1):
            if whole == left + encode(text[begin:last]):
                return end, begin
    return None
