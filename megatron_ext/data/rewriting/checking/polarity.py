"""Negation that appeared or vanished, and directions that turned (up, down; lack, excess), clause beside clause."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import dropwhile, takewhile

from megatron_ext.data.rewriting.checking.lexicon import Lexicon
from megatron_ext.data.rewriting.checking.text import Clause, Text, content_stems, words_of

AROUND_NUMBERS = 0
"""The pair of directions with words as common as `mais`, which tell something beside a number alone."""
_MIN_SHARED, _MANY_SHARED = 2, 3
_SCOPE_WORDS = 2
_LINKS = 2
"""Words at most between a negation and the one word that it denies: é, deve ser."""
_Ways = dict[tuple[int, int], list[Clause]]
"""(pair of directions, side) -> the clauses that say it."""


def negation_appeared(source: Text, text: Text, lexicon: Lexicon) -> bool:
    """A clause denies what the source's clause about the same says without a word of denial."""
    return any(_states(clause, source.clauses, lexicon) for clause in text.clauses if is_negated(clause, lexicon))


def negation_vanished(source: Text, text: Text, lexicon: Lexicon) -> bool:
    """The source denies what the text's clause about the same says without a word of denial."""
    return any(_states(clause, text.clauses, lexicon) for clause in source.clauses if is_negated(clause, lexicon))


def direction_turned(source: Text, text: Text, lexicon: Lexicon) -> bool:
    """The source goes one way alone, and the text the other way alone, where it speaks of the same; or a clause of the
    text goes the other way than the only one of the source that says the same.
    """
    there, here = _directions(source, lexicon), _directions(text, lexicon)
    return any((pair, 1 - side) in here and (
        ((pair, side) not in here and (pair, 1 - side) not in there
         and _are_of_the_same(there[pair, side], here[pair, 1 - side], source, lexicon))
        or _turns_its_like(there, here, (pair, side), source)) for pair, side in there)


def is_negated(clause: Clause, lexicon: Lexicon) -> bool:
    """Whether it has a negation that denies something."""
    if lexicon.negations.exact.isdisjoint(clause.words) or clause.asks:
        return False
    return not lexicon.negations.exact.isdisjoint(words_of(lexicon.not_negations.sub(" ", clause.text)))


def _states(negated: Clause, others: Sequence[Clause], lexicon: Lexicon) -> bool:
    """Whether a clause without a word of denial says the same as the negated one: of what is denied (of a part
    of it, where much else is the same), and as a whole.
    """
    others = [one for one in others if not one.asks]
    shared = [_in_common(negated, one, lexicon) for one in others]
    most = max(shared, default=0)
    if most < min(_MIN_SHARED, max(1, len(negated.stems))) or 2 * most < len(negated.stems):
        return False
    likeliest = [one for one, count in zip(others, shared, strict=True) if count == most]
    denied = _scope(negated, lexicon)
    scope = denied - content_stems(takewhile(lambda word: word not in lexicon.negations, negated.words), lexicon)
    if not any(scope & one.stems and (scope <= one.stems or most >= _MANY_SHARED) for one in likeliest):
        return False
    return not (any(_may_deny(one, negated, lexicon) for one in likeliest)
                or any(is_negated(one, lexicon) and denied <= content_stems(one.words_around, lexicon)
                       for one in others))  # it is denied there, too


def _in_common(negated: Clause, other: Clause, lexicon: Lexicon) -> int:
    """Content words of a negated clause that another has; one that is alone must have the same form, and be denied
    itself: `não é bivolt`, but not `não como em outros biomas`.
    """
    shared = len(negated.stems & other.stems)
    if shared and len(negated.stems) == 1:
        after = [*dropwhile(lambda word: word not in lexicon.negations, negated.words)][1:2 + _LINKS]
        return len(content_stems(set(after).intersection(other.words), lexicon))
    return shared


def _scope(clause: Clause, lexicon: Lexicon) -> frozenset[str]:
    """Stems of what is denied: the next content words, up to a conjunction."""
    words = iter(words_of(lexicon.not_negations.sub(" ", clause.text)))
    next((word for word in words if word in lexicon.negations), None)
    denied = [stem for word in takewhile(lambda word: word not in lexicon.conjunctions, words)
              for stem in content_stems([word], lexicon) if word not in lexicon.negations]
    return frozenset(denied[:_SCOPE_WORDS])


def _may_deny(clause: Clause, negated: Clause, lexicon: Lexicon) -> bool:
    """Whether its sentence has a negation, or a word of denial that the negated one has not."""
    if not lexicon.negations.exact.isdisjoint(clause.words_around):
        return True
    denials = lexicon.negative_words.among(clause.words_around) | lexicon.limiting_words.among(clause.words)
    return not denials.issubset(negated.words)


def _directions(text: Text, lexicon: Lexicon) -> _Ways:
    """The clauses that say each direction; `não subiu` and `sem aumento` say none."""
    found: _Ways = {}
    telling = {word: places for word in text.word_set if (
        places := [place for place in lexicon.directions.of(word) if place[0] != AROUND_NUMBERS])}
    for clause in text.clauses:
        if (telling.keys().isdisjoint(clause.words) or lexicon.without.has_any_of(clause.words)
                or not lexicon.negations.exact.isdisjoint(clause.words)):
            continue
        for place in {place for word in telling.keys() & clause.words for place in telling[word]}:
            found.setdefault(place, []).append(clause)
    return found


def _are_of_the_same(there: list[Clause], here: list[Clause], source: Text, lexicon: Lexicon) -> bool:
    """Whether a clause of the text has most in common with one of the source's that says the opposite."""
    subjects = [_subject(one, lexicon) for one in here if not one.asks]
    return any(max(len(one & _subject(other, lexicon)) for other in there)
               >= max(1, *(len(one & other.stems) for other in source.clauses)) for one in subjects)


def _subject(clause: Clause, lexicon: Lexicon) -> frozenset[str]:
    """Stems of what it speaks of: its sentence's, where it has no more than a word itself."""
    return clause.stems if len(clause.stems) > 1 else content_stems(clause.words_around, lexicon)


def _turns_its_like(there: _Ways, here: _Ways, place: tuple[int, int], source: Text) -> bool:
    """Whether a clause of the text goes the other way than the one of the source with most of its words."""
    pair, side = place
    turned = [one for one in here[pair, 1 - side] if not one.asks and one not in here.get(place, ())]
    return any(like and all(one in there[place] and one not in there.get((pair, 1 - side), ()) for one in like)
               for like in (_likest(one, source) for one in turned))


def _likest(clause: Clause, source: Text) -> list[Clause]:
    """The source's clauses with most of its words, if these are many enough."""
    shared = [len(clause.stems & one.stems) for one in source.clauses]
    most = max(shared, default=0)
    if most < _MIN_SHARED or 2 * most < len(clause.stems):
        return []
    return [one for one, count in zip(source.clauses, shared, strict=True) if count == most]
