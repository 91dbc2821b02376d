"""The boundary of all engines: what comes in is text that can be stored, without the model's reasoning."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import replace

from megatron_ext.data.rewriting.engines.interface import Answer, Engine, TakeBatch

_NAMES = r"(?:think(?:ing)?|thoughts?|reason(?:ing)?|reflection|analysis|scratchpad|seed:think)"
_OPEN = re.compile(rf"<\|?{_NAMES}\|?>|\[THINK\]|◁think▷|<\|channel\|>\s*analysis\s*<\|message\|>", re.IGNORECASE)
_CLOSE = re.compile(rf"</\|?{_NAMES}\|?>|<\|/{_NAMES}\|>|\[/THINK\]|◁/think▷|<\|channel\|>\s*final\s*<\|message\|>",
                    re.IGNORECASE)
_KEPT_CONTROLS = "\n\t"


def clean_answers(engine: Engine, take: TakeBatch) -> Iterator[Answer]:
    """The answers of an engine, each cleaned."""
    for request, completion in engine.answer(take):
        yield request, replace(completion, text=clean(completion.text, request.prompt))


def clean(text: str, prompt: str = "") -> str:
    """The text without surrogates, control characters and reasoning; reasoning tags that the prompt has are text."""
    text = storable(text)
    if _OPEN.search(prompt) or _CLOSE.search(prompt):
        return text
    return without_reasoning(text)


def storable(text: str) -> str:
    """Valid Unicode without control characters: pairs of surrogates are joined, single ones and NUL left out."""
    text = text.encode("utf-16", "surrogatepass").decode("utf-16", "ignore")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    if text.isprintable():
        return text
    return "".join(one for one in text if one in _KEPT_CONTROLS or unicodedata.category(one) not in ("Cc", "Cs"))


def without_reasoning(text: str) -> str:
    """What stands after the last end of reasoning; what begins to reason without an end is all reasoning.

    Chat templates often write the opening tag themselves, so that an answer may hold the closing one alone.
    """
    ends = [match.end() for match in _CLOSE.finditer(text)]
    if ends:
        text = text[ends[-1]:]
    opening = _OPEN.search(text)
    return (text[:opening.start()] if opening else text).strip()
