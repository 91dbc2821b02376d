"""Form: refusals, talk about the task, Markdown, endings without an end. What the source has itself is no fault."""

from __future__ import annotations

import re
from functools import cache

from megatron_ext.data.rewriting.checking.lexicon import Lexicon
from megatron_ext.data.rewriting.checking.qa import QaText, is_labelled
from megatron_ext.data.rewriting.checking.text import Sentence, Text, content_stems, stem, words_of

_MARKDOWN = {
    "heading": re.compile(r"^[ \t]*#{1,6}[ \t]*\w", re.MULTILINE),
    "bold": re.compile(r"\*\*[^*\n]+\*\*|__[^_\n]+__"),
    "fence": re.compile(r"```|~~~"),
    "rule": re.compile(r"^[ \t]*(?:-{3,}|\*{3,}|_{3,})[ \t]*$", re.MULTILINE),
    "table": re.compile(r"^[ \t]*\|.*\|[ \t]*$", re.MULTILINE),
    "link": re.compile(r"\[[^\]\n]+\]\([^)\n]+\)"),
    "bullet": re.compile(r"^[ \t]*[-*•][ \t]+\w", re.MULTILINE),
}
_END = re.compile(r"[.!?…:;»”\"'’)\]}*_`]\s*$")
_FINAL_WORD = re.compile(r"([^\W\d_]+)\W*$")
_OPEN_END = re.compile(r"[,\-–—(/&]\s*$")
_ELLIPSIS = re.compile(r"(?:\.\.\.|…)\s*$")
_PAIRS = (("(", ")"), ("[", "]"), ("«", "»"), ("“", "”"))
_ANNOUNCES = re.compile(r"[:!]\W*$")
_LABEL_END = re.compile(r"(?:\s+\d+)?(?:\s*\([^()\n]*\))?[*_]*\s*[:–—.]")
_HEAD = re.compile(r"\W*([^:–—()\[\]]{2,60}?)[*_]*(?:\s*(?:[:)\]]|$)|\s[–—]\s)")
_EMOJI = re.compile("[\U0001F300-\U0001FAFF\u2600-\u27BF\u2B50]")
_EDGE_SENTENCES = 2
_EDGE_WORDS = 30
_TITLE_WORDS = 12
_MANY_META = 2


def is_refusal(source: Text, text: Text, lexicon: Lexicon) -> bool:
    """Whether the rewriter declines."""
    return (lexicon.refusal_triggers.has_any_of(text.word_set)
            and bool(lexicon.refusal.search(text.raw)) and not lexicon.refusal.search(source.raw))


def has_leftovers(source: Text, text: Text, lexicon: Lexicon) -> bool:
    """Tags of prompts and chat formats, and sentences about the task instead of the subject."""
    if any(mark.search(text.raw) and not mark.search(source.raw) for mark in (_tags(lexicon), _EMOJI)):
        return True
    sentences = [sentence for sentence in text.sentences if sentence.words]
    edge = [*sentences[:_EDGE_SENTENCES], *sentences[_EDGE_SENTENCES:][-_EDGE_SENTENCES:]]
    if lexicon.talk_triggers.has_any_of(text.word_set) and any(
            _has_talk_phrase(sentence, source, lexicon) for sentence in edge):
        return True
    talk = frozenset(word for word in lexicon.meta_words.among(text.word_set) | lexicon.talk.among(text.word_set)
                     if word not in source.word_set and stem(word) not in source.stems)
    return any(_is_talk(sentence, talk, source, lexicon, at_edge=sentence in edge)
               for sentence in text.sentences) or _is_framed(source, text, lexicon)


def new_markdown(source: Text, text: Text) -> list[str]:
    """Kinds of Markdown that the source does not use."""
    kinds = [kind for kind, pattern in _MARKDOWN.items()
             if pattern.search(text.raw) and not pattern.search(source.raw)]
    return kinds + ["title"] * (_has_title(text) and not _has_title(source))


def _has_title(text: Text) -> bool:
    """Whether a first line without an end stands apart from what follows."""
    first, _, rest = text.raw.strip().partition("\n")
    return rest.startswith("\n") and not _END.search(first) and len(words_of(first)) <= _TITLE_WORDS


def is_cut(source: Text, text: Text, lexicon: Lexicon, qa: QaText | None = None) -> bool:
    """Whether it ends without an end: within a sentence, with a word that wants another, within brackets."""
    raw = text.raw.rstrip()
    last = _FINAL_WORD.search(raw)
    dangles = bool(last) and last[1].lower() in lexicon.dangling_words and not _END.search(raw)
    if dangles or _OPEN_END.search(raw) or (_ELLIPSIS.search(raw) and not _ELLIPSIS.search(source.raw.rstrip())):
        return True
    if _END.search(raw):
        return any(raw.count(left) > raw.count(right) and source.raw.count(left) <= source.raw.count(right)
                   for left, right in _PAIRS)
    if qa is not None:  # answers of a word or two often have no full stop; then none of them has
        earlier = [answer for _, answer in qa.pairs[:-1]]
        return bool(earlier) and all(_END.search(answer) for answer in earlier) and len(qa.pairs[-1][1].split()) > 3
    return bool(_END.search(source.raw.rstrip())) and len(text.words) > 3


def _is_talk(sentence: Sentence, talk: frozenset[str], source: Text, lexicon: Lexicon, at_edge: bool) -> bool:
    """Words of those who speak about a text, which the source has not: fewer are enough at its beginning and end."""
    telling = talk.intersection(sentence.words)
    num_meta = len({stem(word) for word in telling if word in lexicon.meta_words})
    if (at_edge or num_meta > 1) and _is_labelled(sentence, source, lexicon):
        return True
    says_i = any(word in lexicon.talk for word in telling)
    return (says_i and num_meta >= (1 if at_edge else 2)) or num_meta >= (4 if at_edge else 6)


def _is_labelled(sentence: Sentence, source: Text, lexicon: Lexicon) -> bool:
    """`Nota: …`, `**Observação:** …`."""
    text = sentence.text.lstrip(" (*_[#>-\t")
    label = lexicon.labels.match(text)
    return bool(label) and bool(_LABEL_END.match(text, label.end())) and label[0].lower() not in source.raw.lower()


def _is_framed(source: Text, text: Text, lexicon: Lexicon) -> bool:
    """A first or last line that speaks of the text or to its reader, and says nothing of the source."""
    lines = [line for line in text.raw.split("\n") if line.strip()]
    ends = [line for line in {*lines[:1], *lines[-1:]} if not is_labelled(line, lexicon)]
    if any(_is_entitled(line, source, lexicon) for line in ends):
        return True
    return len(lines) > 1 and any(_says_nothing_of(source, line, lexicon) or (
        bool(_ANNOUNCES.search(line)) and _tells_of_task(line, source, lexicon)) for line in ends)


def _says_nothing_of(source: Text, line: str, lexicon: Lexicon) -> bool:
    words = words_of(line)
    return len(words) <= _EDGE_WORDS and content_stems(words, lexicon).isdisjoint(source.stems) and any(
        word in lexicon.meta_words or word in lexicon.talk for word in words)


def _tells_of_task(line: str, source: Text, lexicon: Lexicon) -> bool:
    """Whether its words, as far as the source has them not, are of one who speaks of his work, or of a text."""
    words = [word for word in words_of(line) if word not in source.word_set]
    return len(words) <= _EDGE_WORDS and (lexicon.talk.has_any_of(words)
                                          or len(lexicon.meta_words.among(words)) >= _MANY_META)


def _is_entitled(line: str, source: Text, lexicon: Lexicon) -> bool:
    """`Resumo do texto: …`, `[Versão formal]`: nothing but words about a text, none of the source's, heads the line."""
    head = _HEAD.match(line)
    told = [word for word in words_of(head[1]) if word not in lexicon.function_words] if head else []
    return (bool(told) and all(word in lexicon.meta_words for word in told)
            and content_stems(told, lexicon).isdisjoint(source.stems))


def _has_talk_phrase(sentence: Sentence, source: Text, lexicon: Lexicon) -> bool:
    """Whether it has a phrase of those who speak about their work, which the source has in no form."""
    return any((found := phrase.search(sentence.text)) is not None and not phrase.search(source.raw)
               and not _has_words(found[0], source, lexicon) for phrase in lexicon.talk_phrases)


def _has_words(phrase: str, source: Text, lexicon: Lexicon) -> bool:
    stems = content_stems(words_of(phrase), lexicon)
    return bool(stems) and stems <= source.stems


@cache
def _tags(lexicon: Lexicon) -> re.Pattern[str]:
    """Of prompts, reasoning and chat formats."""
    names = rf"{re.escape(lexicon.text_tag)}|{lexicon.tags.pattern}|text|rewrite|think(?:ing)?|reason(?:ing)?|answer"
    return re.compile(rf"</?(?:{names}|output|source)\b[^>]{{0,20}}>"
                      r"|<\|[^|>]{1,30}\|>|\[/?(?:INST|THINK)\]|\{\{|\}\}", re.IGNORECASE)
