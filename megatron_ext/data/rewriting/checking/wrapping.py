"""What instruct models put around the text that they were asked for, and how it is taken off.

Only well-known forms at the very beginning and end are taken off, and nothing that the source has something like. What
else a model says of its work is a fault that the checks find.
"""

from __future__ import annotations

import re
from functools import cache

from megatron_ext.data.rewriting.checking.lexicon import Lexicon

_FENCE = re.compile(r"```\w*\n(.*?)\n```", re.DOTALL)
_QUOTES = re.compile(r'"""\s*(.*?)\s*"""', re.DOTALL)
_BEGINNING = 5
"""Letters by which words of a closing line are compared."""


def strip_wrapping(output: str, source: str, lexicon: Lexicon) -> str:
    """The text without "Aqui está …:" before it, "Espero que …" after it, tags, fences or triple quotes around it."""
    text = output.strip()
    while (inner := _strip_once(text, source, lexicon)) != text:  # a fence around an announcement around the text
        text = inner
    return text


def _strip_once(text: str, source: str, lexicon: Lexicon) -> str:
    for opening in _openings(lexicon):
        if opening.match(text) and not opening.match(source.strip()):
            text = opening.sub("", text, count=1)
    closing = _closing(lexicon).search(text)
    if closing and not _tells_of(closing[0], source, lexicon):
        text = text[:closing.start()]
    tags = _tags(lexicon)
    if not tags.search(source.strip()):
        text = tags.sub("", text.strip())
    for enclosure, mark in ((_FENCE, "```"), (_QUOTES, '"""')):
        match = enclosure.fullmatch(text.strip())
        text = match[1] if match and mark not in source else text
    return text.strip()


def _tells_of(line: str, source: str, lexicon: Lexicon) -> bool:
    """Whether a closing line is more than polite: has a number or a longer word that begins as one of the source, or
    talks about the text, which the checks shall see.
    """
    polite = {word[:_BEGINNING] for word in lexicon.polite_words}
    beginnings = _beginnings(line) - polite
    return bool(lexicon.closing_tells.search(line)) or bool(beginnings & _beginnings(source))


def _beginnings(text: str) -> set[str]:
    return {word[:_BEGINNING] for word in re.findall(rf"[^\W\d_]{{{_BEGINNING},}}", text.lower())}


@cache
def _openings(lexicon: Lexicon) -> tuple[re.Pattern[str], ...]:
    polite, title = lexicon.polite_opening, lexicon.title
    patterns = (
        rf"(?:{polite})[!.](?:\s+(?:{lexicon.intention})\b[^\n:.!]{{0,80}}[.!:])?\s+",  # Claro! Vou reescrever o texto.
        rf"(?:(?:{polite}), )?(?:{lexicon.announcement}):\s*",                         # Aqui está o texto reescrito:
        rf"[*#_ ]*(?:{title})[*_ ]*:[*_ ]*\s*\n",                                       # **Texto reescrito:**
        rf"[*#_ ]+(?:{title})[*_ ]*\n",                                                 # ## Texto reescrito
    )
    return tuple(re.compile(pattern, re.IGNORECASE) for pattern in patterns)


@cache
def _closing(lexicon: Lexicon) -> re.Pattern[str]:
    """Espero que isso ajude! · Se precisar de mais alguma coisa, me avise."""
    return re.compile(rf"\n\s*(?:{lexicon.closing})[^\n]*\s*$", re.IGNORECASE)


@cache
def _tags(lexicon: Lexicon) -> re.Pattern[str]:
    """Those of the prompt, written back."""
    tag = rf"</?(?:{re.escape(lexicon.text_tag)}|text)>"
    return re.compile(rf"^{tag}\s*|\s*{tag}$", re.IGNORECASE)
