"""Contamination: which documents hold n-grams of the items that models will be tested on.

Items lie in `.jsonl` files with lines `{"task": …, "id": …, "text": …}` (`tools.poeta_items` writes those of PoETa V2).
Texts are compared as words without case, accents and punctuation. Of an item with at least `ngram` words every run of
so many words is looked for (13, after Brown et al., "Language models are few-shot learners", 2020, appendix C); of a
shorter one every run of `short_ngram` words; one that is shorter still says too little, and is not looked for.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import xxhash

from megatron_ext.errors import UserError

_WORD = re.compile(r"\w+")
_MAX_KNOWN_WORDS = 500_000
_BASE = np.uint64(0x9E3779B97F4A7C15)  # odd: multiplying by it loses nothing
_FILTER_BITS = 24


@dataclass(frozen=True)
class Item:
    """One test item."""

    task: str
    id: str
    text: str


@dataclass(frozen=True)
class Hits:
    """Which documents share n-grams with which items; each pair once."""

    documents: np.ndarray  # int64 [num_pairs]
    items: np.ndarray  # int32 [num_pairs]

    def moved(self, documents: np.ndarray, to: np.ndarray) -> Hits:
        """The hits of these documents, int `[n]`, each under its other number, int `[n]`."""
        order = np.argsort(documents)
        at = np.searchsorted(documents, self.documents, sorter=order)
        places = order[np.minimum(at, len(order) - 1)] if len(order) else np.zeros(len(at), np.int64)
        is_there = documents[places] == self.documents if len(order) else np.zeros(len(at), bool)
        return Hits(to[places[is_there]].astype(np.int64), self.items[is_there])

    @staticmethod
    def none() -> Hits:
        """No pairs."""
        return Hits(np.empty(0, np.int64), np.empty(0, np.int32))

    @staticmethod
    def concatenate(parts: Sequence[Hits]) -> Hits:
        """All pairs."""
        return Hits(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("documents", "items")))


def read_items(path: Path) -> list[Item]:
    """The items of a file, or of all `.jsonl` files of a folder in the order of their names.

    Raises UserError when there are none, or a line is not an item.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path] if path.is_file() else []
    items = [_item(line, f"{file}, line {number}") for file in files
             for number, line in enumerate(file.read_text(encoding="utf-8").split("\n"), start=1) if line.strip()]
    if not items:
        raise UserError(f"{path} holds no test items; needed: a .jsonl file, or a folder of them, with lines "
                        '{"task": …, "id": …, "text": …}')
    return items


class Matcher:
    """Finds the n-grams of items in documents."""

    def __init__(self, items: Sequence[Item], ngram: int, short_ngram: int) -> None:
        self.lengths = tuple(dict.fromkeys((ngram, short_ngram)))
        self._words = _WordHashes()
        grams: dict[int, tuple[list[np.ndarray], list[np.ndarray]]] = {length: ([], []) for length in self.lengths}
        self.is_checked = np.zeros(len(items), dtype=bool)
        for number, item in enumerate(items):
            words = self._words.of(item.text)
            length = next((length for length in self.lengths if len(words) >= length), None)
            if length is None:
                continue
            self.is_checked[number] = True
            hashes = np.unique(_ngrams(words, length))
            grams[length][0].append(hashes)
            grams[length][1].append(np.full(len(hashes), number, dtype=np.int32))
        self._tables = [_Table(length, *map(np.concatenate, found)) for length, found in grams.items() if found[0]]
        self._words.forget_others()

    def find(self, texts: pa.StringArray) -> Hits:
        """The pairs of text (by its place) and item that share an n-gram."""
        words = [self._words.of(text) for text in texts.to_pylist()]
        hits = []
        for table in self._tables:
            # Zeros, the hash of words that no item has, keep n-grams from reaching over the end of a text.
            gap = np.zeros(table.length, dtype=np.uint64)
            stream = np.concatenate([part for text in words for part in (text, gap)] or [gap])
            starts = np.cumsum([0, *(len(text) + table.length for text in words)])
            positions, items = table.find(stream)
            hits.append(Hits(np.searchsorted(starts, positions, side="right") - 1, items))
        return _unique(Hits.concatenate(hits)) if hits else Hits.none()


def contamination_counts(path: Path, ngram: int, short_ngram: int, hits: Hits) -> dict[str, Any]:
    """What the manifest says: the documents that hold an item; per task its items, those that were looked for, those
    that were found, and the documents that hold one."""
    items = read_items(path)
    is_checked = load_matcher(path, ngram, short_ngram).is_checked
    tasks = np.array([item.task for item in items])
    hit_tasks = tasks[hits.items]
    per_task = {task: {"items": int(np.sum(tasks == task)), "items_checked": int(np.sum(is_checked[tasks == task])),
                       "items_hit": len(np.unique(hits.items[hit_tasks == task])),
                       "documents_hit": len(np.unique(hits.documents[hit_tasks == task]))}
                for task in sorted(set(tasks.tolist()))}
    return {"ngram": ngram, "short_ngram": short_ngram, "documents_hit": len(np.unique(hits.documents)),
            "tasks": per_task}


@lru_cache(maxsize=1)
def load_matcher(path: Path, ngram: int, short_ngram: int) -> Matcher:
    """The matcher of the items in a file or folder; a process builds it once."""
    return Matcher(read_items(path), ngram, short_ngram)


class _WordHashes:
    """Words to 64-bit numbers; after `forget_others`, new words are 0."""

    def __init__(self) -> None:
        self._known: dict[str, int] = {}  # as written, case and accents included
        self._vocabulary: set[int] | None = None

    def of(self, text: str) -> np.ndarray:
        known = self._known
        words = _WORD.findall(unicodedata.normalize("NFC", text))
        try:
            return np.array([known[word] for word in words], dtype=np.uint64)
        except KeyError:
            self._learn(words)
            return np.array([self._known[word] for word in words], dtype=np.uint64)

    def forget_others(self) -> None:
        """From now on only the words seen so far count: no n-gram of an item has another one."""
        self._vocabulary = set(self._known.values())

    def _learn(self, words: Iterable[str]) -> None:
        if len(self._known) > _MAX_KNOWN_WORDS:
            self._known.clear()
        for word in words:
            if word not in self._known:
                value = _hash_word(word)
                self._known[word] = value if self._vocabulary is None or value in self._vocabulary else 0


class _Table:
    """The n-grams of one length, each with the items that have it."""

    def __init__(self, length: int, hashes: np.ndarray, items: np.ndarray) -> None:
        self.length = length
        order = np.argsort(hashes, kind="stable")
        self._hashes, self._items = hashes[order], items[order]
        self._filter = np.zeros(1 << _FILTER_BITS, dtype=bool)
        self._filter[_filter_bits(hashes)] = True

    def find(self, stream: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(start, item) of every n-gram of an item in a sequence of words' numbers."""
        hashes = _ngrams(stream, self.length)
        unknown_before = np.concatenate([[0], np.cumsum(stream == 0)])
        is_known = unknown_before[self.length:] == unknown_before[:-self.length]
        starts = np.flatnonzero(is_known & self._filter[_filter_bits(hashes)])
        first = np.searchsorted(self._hashes, hashes[starts], side="left")
        counts = np.searchsorted(self._hashes, hashes[starts], side="right") - first
        offsets = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(starts, counts), self._items[np.repeat(first, counts) + offsets]


def _ngrams(words: np.ndarray, length: int) -> np.ndarray:
    """A 64-bit hash of each run of `length` words: a polynomial in words' hashes."""
    num_ngrams = len(words) - length + 1
    hashes = np.zeros(num_ngrams, dtype=np.uint64)
    for start in range(length):
        hashes = hashes * _BASE + words[start:start + num_ngrams]
    return hashes


def _filter_bits(hashes: np.ndarray) -> np.ndarray:
    return hashes >> np.uint64(64 - _FILTER_BITS)


def _unique(hits: Hits) -> Hits:
    documents, items = np.unique(np.stack([hits.documents, hits.items]), axis=1)
    return Hits(documents, items.astype(np.int32))


def _hash_word(word: str) -> int:
    folded = unicodedata.normalize("NFKD", word.casefold())
    return xxhash.xxh3_64_intdigest("".join(c for c in folded if not unicodedata.combining(c)).encode()) or 1


def _item(line: str, place: str) -> Item:
    try:
        row = json.loads(line)
        return Item(str(row["task"]), str(row["id"]), str(row["text"]))
    except (ValueError, KeyError, TypeError):
        raise UserError(f'{place} is not a test item: {{"task": …, "id": …, "text": …}}') from None
