"""What instruct models put around the text that they were asked for, and how it is taken off.

Only well-known forms at the very beginning and end are taken off, and nothing that the source has something like. What
else a model says of its work is a fault that the checks find.
"""

from __future__ import annotations

import re

_POLITE = r"(?:claro|certamente|com certeza|sem problemas?|sure|certainly|of course)"
_ANNOUNCED = (r"(?:aqui (?:está|estão|vai|vão)|eis|seguem?(?: abaixo)?|abaixo (?:está|estão|segue)|here (?:is|are))"
              r"(?:[^\n:,]{0,80}?\b(?:textos?|versão|reescrita|paráfrase|perguntas?|text|version|rewrite)\b[^\n:,]{0,60})?")
_TITLED = r"(?:texto|versão|reescrita)(?: (?:reescrit[oa]|simplificad[oa]|formal|técnic[oa]|final))?"
_OPENINGS = (
    re.compile(rf"{_POLITE}[!.](?:\s+vou\b[^\n:.!]{{0,80}}[.!:])?\s+", re.IGNORECASE),  # Claro! Vou reescrever o texto.
    re.compile(rf"(?:{_POLITE}, )?{_ANNOUNCED}:\s*", re.IGNORECASE),                   # Aqui está o texto reescrito:
    re.compile(rf"[*#_ ]*{_TITLED}[*_ ]*:[*_ ]*\s*\n", re.IGNORECASE),                # **Texto reescrito:**
    re.compile(rf"[*#_ ]+{_TITLED}[*_ ]*\n", re.IGNORECASE),                          # ## Texto reescrito
)
_CLOSING = re.compile(  # Espero que isso ajude! · Se precisar de mais alguma coisa, me avise.
    r"\n\s*(?:espero que (?:isso|isto|est[ea]|o texto|ajude|tenha)|se (?:você )?(?:precisar|quiser|desejar)"
    r"|caso (?:você )?(?:precise|queira|deseje)|(?:por favor, )?me (?:avise|diga))[^\n]*\s*$", re.IGNORECASE)
_MORE = re.compile(r"\d|\b(?:posso|vers[ãõ]|reescr|nível|estilo)", re.IGNORECASE)
_POLITE_WORDS = ("esper", "preci", "quise", "desej", "queir", "ajude", "avise", "texto")
_FENCE = re.compile(r"```\w*\n(.*?)\n```", re.DOTALL)
_QUOTES = re.compile(r'"""\s*(.*?)\s*"""', re.DOTALL)
_TAGS = re.compile(r"^<texto?>\s*|\s*</texto?>$", re.IGNORECASE)  # those of the prompt, written back


def strip_wrapping(output: str, source: str) -> str:
    """The text without "Aqui está …:" before it, "Espero que …" after it, tags, fences or triple quotes around it."""
    text = output.strip()
    while (inner := _strip_once(text, source)) != text:  # a fence around an announcement around the text
        text = inner
    return text


def _strip_once(text: str, source: str) -> str:
    for opening in _OPENINGS:
        if opening.match(text) and not opening.match(source.strip()):
            text = opening.sub("", text, count=1)
    closing = _CLOSING.search(text)
    if closing and not _tells_of(closing[0], source):
        text = text[:closing.start()]
    if not _TAGS.search(source.strip()):
        text = _TAGS.sub("", text.strip())
    for enclosure, mark in ((_FENCE, "```"), (_QUOTES, '"""')):
        match = enclosure.fullmatch(text.strip())
        text = match[1] if match and mark not in source else text
    return text.strip()


def _tells_of(line: str, source: str) -> bool:
    """Whether a closing line is more than polite: has a number or a longer word that begins as one of the source, or
    talks about the text, which the checks shall see.
    """
    beginnings = {word[:5] for word in re.findall(r"[^\W\d_]{5,}", line.lower())} - set(_POLITE_WORDS)
    known = {word[:5] for word in re.findall(r"[^\W\d_]{5,}", source.lower())}
    return bool(_MORE.search(line)) or bool(beginnings & known)
