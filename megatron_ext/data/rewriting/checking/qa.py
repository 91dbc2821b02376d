"""Questions and answers as people write them: `Pergunta: …`, `**Pergunta 1:**`, `1. P: …`, with the answer on the next
line or the same one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from megatron_ext.data.rewriting.checking.lexicon import Lexicon
from megatron_ext.data.rewriting.checking.text import Text, content_stems, words_of

_LIST_LINE = re.compile(r"\s*(?:[-*•–]|\d+[.)])\s")



@dataclass(frozen=True)
class QaText:
    """A text taken apart at its labels."""

    pairs: tuple[tuple[str, str], ...]
    """(question, answer) without labels; neither is empty."""
    num_broken: int
    """Questions without answer, answers without question."""
    outside: str
    """What belongs to no pair: text before the first, and paragraphs after an answer that are no list."""


    @property
    def content(self) -> str:
        """All of it but the labels."""
        return "\n".join([*(part for pair in self.pairs for part in pair), self.outside]).strip()


NO_PAIRS = QaText((), 0, "")


def read_qa(text: str, lexicon: Lexicon) -> QaText:
    """The pairs of a text."""
    pieces = _pieces(text, lexicon)
    outside = [pieces[0][1]] if pieces and pieces[0][0] == "" else []
    labelled = [piece for piece in pieces if piece[0]]
    pairs: list[tuple[str, str]] = []
    num_broken = 0
    question: str | None = None
    for kind, content in labelled:
        if kind == "question":
            num_broken += question is not None
            question = content
        else:
            answer, rest = _split_prose(content)
            outside += [rest] if rest else []
            if question and any(map(str.isalnum, question)) and any(map(str.isalnum, answer)):
                pairs.append((question.strip(), answer))
            else:
                num_broken += 1
            question = None
    return QaText(tuple(pairs), num_broken + (question is not None), "\n".join(outside).strip())


def unanswered(qa: QaText, lexicon: Lexicon) -> int:
    """Answers that say that they have none."""
    return sum(bool(lexicon.unanswered.search(answer)) for _, answer in qa.pairs)


def is_labelled(line: str, lexicon: Lexicon) -> bool:
    """Whether a line begins as a question or an answer does."""
    return any(label.match(line) for label in _labels(lexicon))


def about_the_text(qa: QaText, source: Text, lexicon: Lexicon) -> int:
    """Pairs that have nothing of the source and speak of a text: `uma pergunta sobre o texto`."""
    return sum(content_stems(words, lexicon).isdisjoint(source.stems) and lexicon.meta_words.has_any_of(words)
               for words in map(words_of, map(" ".join, qa.pairs)))


def _pieces(text: str, lexicon: Lexicon) -> list[tuple[str, str]]:
    """(question, answer or empty, what stands from the label to the next one)."""
    question, answer = _labels(lexicon)
    marks = sorted([(match.start(), match.end(), "question") for match in question.finditer(text)]
                   + [(match.start(), match.end(), "answer") for match in answer.finditer(text)])
    ends = [*(start for start, _, _ in marks[1:]), len(text)][:len(marks)]
    head = text[:marks[0][0]] if marks else text
    pieces = [("", head)] if any(map(str.isalnum, head)) else []
    return pieces + [(kind, text[start:end].strip(" *_\t\n"))
                     for (_, start, kind), end in zip(marks, ends, strict=True)]


def _split_prose(answer: str) -> tuple[str, str]:
    """An answer, and the paragraphs after it that neither are lists nor follow a colon."""
    paragraphs = [part for part in re.split(r"\n\s*\n", answer) if any(map(str.isalnum, part))]
    kept = 1
    while kept < len(paragraphs) and (_LIST_LINE.match(paragraphs[kept])
                                      or paragraphs[kept - 1].rstrip().endswith(":")):
        kept += 1
    return "\n\n".join(paragraphs[:kept]).strip(), "\n\n".join(paragraphs[kept:]).strip()


@cache
def _labels(lexicon: Lexicon) -> tuple[re.Pattern[str], re.Pattern[str]]:
    return _label(lexicon.question_labels, r"^"), _label(lexicon.answer_labels, r"(?:^|(?<=[?.!])[ \t])")


def _label(names: tuple[str, ...], place: str) -> re.Pattern[str]:
    words = "|".join(sorted(names, key=len, reverse=True))
    return re.compile(rf"{place}[ \t>#*_\-–•]*(?:\d+[.)ªº]*[ \t:–-]*)?[*_]*(?:{words})[*_]*"
                      r"(?:[ \t]*(?:n[º°o.]*[ \t]*)?\d+)?[ \t]*[*_]*[ \t]*(?:[:–—]|[.)](?=\s))[*_]*[ \t]*|"
                      rf"{place}[ \t]*#+[ \t]*(?:{words})[ \t]*\d*[ \t]*$",
                      re.IGNORECASE | re.MULTILINE)
