"""SQuAD's normalisation of answers, for Portuguese."""

from __future__ import annotations

import re
import string

_ARTICLE = re.compile(r"\b(o|a|os|as|um|uma|uns|umas)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise_answer(text: str) -> str:
    """Lower case; no ASCII punctuation, then no articles, then single spaces."""
    return " ".join(_ARTICLE.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())
