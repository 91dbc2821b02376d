"""What instruct models put around the text that they were asked for, and how it is taken off."""

from __future__ import annotations

import re

_POLITE = r"(?:claro|certamente|com certeza|sem problemas?|sure|certainly|of course)"
_ANNOUNCED = (r"(?:aqui (?:está|estão|vai|vão)|eis|seguem?(?: abaixo)?|abaixo (?:está|estão|segue)|here (?:is|are))"
              r"(?:[^\n:]{0,80}?\b(?:textos?|versão|reescrita|paráfrase|perguntas?|text|version|rewrite)\b[^\n:]{0,60})?")
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
_ENCLOSURES = (
    re.compile(r"```\w*\n(.*?)\n```", re.DOTALL),
    re.compile(r'"""\s*(.*?)\s*"""', re.DOTALL),
)
_TAGS = re.compile(r"^<texto?>\s*|\s*</texto?>$", re.IGNORECASE)  # those of the prompt, written back


def strip_wrapping(output: str) -> str:
    """The text without "Aqui está …:" before it, "Espero que …" after it, tags, fences or triple quotes around it."""
    text = output.strip()
    for opening in _OPENINGS:
        text = opening.sub("", text, count=1) if opening.match(text) else text
    text = _TAGS.sub("", _CLOSING.sub("", text).strip())
    for enclosure in _ENCLOSURES:
        match = enclosure.fullmatch(text)
        text = match[1] if match else text
    return text.strip()
