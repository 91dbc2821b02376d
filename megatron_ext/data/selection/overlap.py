"""Held-out text that training text holds, too: what a loss on it says is memory in part.

Two looks at each held-out document: does text that is trained on share a run of `ngram` words with it (case, accents
and punctuation aside, as in `selection.contamination`), and is some training document a near duplicate of it
(`selection.near_duplicates`)? Which documents are held out is what tokenization decides, by a hash of document_id; a
rewrite is held out with its original.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import Field

from megatron_ext.artifacts import Artifact, write_json, write_text
from megatron_ext.data.batches import Chunk
from megatron_ext.data.corpus import Corpus
from megatron_ext.data.selection.contamination import Item, Matcher
from megatron_ext.data.selection.near_duplicates import NearDuplicates, signatures
from megatron_ext.data.tokenization import is_validation
from megatron_ext.data.workers import available_cores, map_in_order
from megatron_ext.errors import UserError
from megatron_ext.identity import PLACE, WATCHING
from megatron_ext.progress import Progress
from megatron_ext.stage import StageSettings, make_artifact

OVERLAP, DOCUMENTS = "overlap.json", "documents.jsonl"
_NEAR = NearDuplicates()


class OverlapSettings(StageSettings):
    """Which text is compared with which."""

    training: Annotated[dict[str, Path], PLACE] = Field(min_length=1)
    """Name -> documents (artifact) that are trained on, but those held out."""
    held_out: Annotated[dict[str, Path], PLACE] = Field(default_factory=dict)
    """Name -> documents (artifact) of which some are held out."""
    neutral: Annotated[dict[str, Path], PLACE] = Field(default_factory=dict)
    """Name -> documents (any corpus) that are all held out."""
    styles: dict[str, list[str]] = Field(default_factory=dict)
    """Name of `training` or `held_out` -> the styles of its documents that count; of all others, all do."""
    text_column: str = "text"
    """Column of the neutral text."""
    id_column: str | None = "id"
    """Column of the neutral documents' ids; null: ids are made from the text."""
    valid_fraction: float = Field(default=0.0, ge=0.0, le=1.0)
    """As of the tokenization."""
    split_seed: int = Field(default=0, ge=0)
    """As of the tokenization."""
    ngram: int = Field(default=13, ge=3)
    """Words in a row that are too many to be shared by chance."""
    short_ngram: int | None = Field(default=None, ge=3)
    """The same for held-out texts of fewer words, such as test items; none: those are only looked for as near
    duplicates."""
    workers: Annotated[int | None, WATCHING] = Field(default=None, ge=1)
    """Processes; default: one a core. Does not change the result."""


    @property
    def unused_sections(self) -> tuple[str, ...]:
        """`short_ngram` came later: what was made without it keeps its name."""
        return () if self.short_ngram else ("short_ngram",)

    def matcher(self, items: list[Item]) -> Matcher:
        """What finds words in a row."""
        return Matcher(items, self.ngram, self.short_ngram or self.ngram)


@dataclass
class Found:
    """Held-out documents, by their numbers, that a source's training text holds in part."""

    shared: set[int] = field(default_factory=set)
    near: set[int] = field(default_factory=set)


def find_overlap(settings: OverlapSettings, output: Path) -> Artifact:
    """Make the artifact `output` (kind "overlap").

    `overlap.json` has for each held-out text its number of documents and, for each source that is trained on, how many
    of them share words in a row with it and how many are near duplicates. `documents.jsonl` names them, one line a
    document: source, id, shares_words (with which sources), near_duplicate_of (which sources).

    Raises UserError for a place that cannot be read.
    """
    inputs = {f"{kind} {name}": path for kind in ("training", "held_out", "neutral")
              for name, path in getattr(settings, kind).items()}
    return make_artifact(output, kind="overlap", settings=settings, inputs=inputs,
                         make=lambda folder: _make(settings, folder))


def _make(settings: OverlapSettings, folder: Path) -> dict[str, Any]:
    documents = _held_out_items(settings)
    if not documents:
        raise UserError("no document of held_out is held out (valid_fraction) and there is no neutral text")
    found = {name: _look_through(settings, name) for name in settings.training}
    lines = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in _lines(documents, found))
    write_text(folder / DOCUMENTS, lines)
    counts = _counts(settings, documents, found)
    write_json(folder / OVERLAP, counts)
    return {"texts": {name: {"documents": one["documents"], "overlapping": one["overlapping"]}
                      for name, one in counts.items()}}


def _lines(documents: list[Item], found: Mapping[str, Found]) -> Iterator[dict[str, Any]]:
    for number, item in enumerate(documents):
        shares = [name for name, one in found.items() if number in one.shared]
        near = [name for name, one in found.items() if number in one.near]
        if shares or near:
            yield {"source": item.task, "id": item.id, "shares_words": shares, "near_duplicate_of": near}


def _counts(settings: OverlapSettings, documents: list[Item], found: Mapping[str, Found]) -> dict[str, Any]:
    numbers: dict[str, set[int]] = {name: set() for name in [*settings.held_out, *settings.neutral]}
    for number, item in enumerate(documents):
        numbers[item.task].add(number)
    unchecked = set(np.flatnonzero(~settings.matcher(documents).is_checked)) if settings.short_ngram else set()
    return {text: {
        "documents": len(mine),
        **({"too_short": len(mine & unchecked)} if settings.short_ngram else {}),
        "overlapping": len(mine & set().union(*(one.shared | one.near for one in found.values()))),
        "training": {name: {"shares_words": len(mine & one.shared), "near_duplicates": len(mine & one.near)}
                     for name, one in found.items()},
    } for text, mine in numbers.items()}


def _look_through(settings: OverlapSettings, name: str) -> Found:
    """Everything that a source's training text holds."""
    chunks = Corpus(settings.training[name]).chunks()
    progress = Progress(f"overlap with {name}", len(chunks), "chunks")
    result = Found()
    task = partial(_look_at, settings.model_dump_json(), name)
    for found in map_in_order(task, chunks, settings.workers or available_cores()):
        result.shared |= found.shared
        result.near |= found.near
        progress.advance(1)
    return result


def _look_at(settings_json: str, name: str, chunk: Chunk) -> Found:
    looker, result = _looker(settings_json), Found()
    for batch in _sides(looker.settings, name, Corpus(looker.settings.training[name]), chunk, held_out=False):
        texts = pc.fill_null(batch.column("text"), "").cast(pa.string())
        result.shared |= set(looker.matcher.find(texts).items.tolist())
        result.near |= looker.near_duplicates(texts)
    return result


class Looker:
    """All held-out text, prepared to be found."""

    def __init__(self, settings: OverlapSettings) -> None:
        self.settings = settings
        items = _held_out_items(settings)
        self.matcher = settings.matcher(items)
        self._bands: dict[tuple[int, int], list[int]] = defaultdict(list)
        for number, bands in enumerate(signatures(pa.array([item.text for item in items], pa.string()), _NEAR)):
            for band, value in enumerate(bands.tolist()):
                self._bands[band, value].append(number)

    def near_duplicates(self, texts: pa.Array) -> set[int]:
        """Numbers of the held-out documents of which one of these texts is a near duplicate."""
        found: set[int] = set()
        for bands in signatures(texts, _NEAR):
            for place in enumerate(bands.tolist()):
                found.update(self._bands.get(place, ()))
        return found


@lru_cache(maxsize=1)
def _looker(settings_json: str) -> Looker:
    return Looker(OverlapSettings.model_validate_json(settings_json))


def _held_out_items(settings: OverlapSettings) -> list[Item]:
    """The held-out documents in the order of texts and documents."""
    corpora = {name: Corpus(path) for name, path in settings.held_out.items()} | {
        name: Corpus(path, settings.text_column, settings.id_column) for name, path in settings.neutral.items()}
    items = []
    for name, corpus in corpora.items():
        for chunk in corpus.chunks():
            for batch in (corpus.read(chunk) if name in settings.neutral
                          else _sides(settings, name, corpus, chunk, held_out=True)):
                items += [Item(name, id, text) for id, text in zip(
                    batch.column("id").to_pylist(), batch.column("text").to_pylist(), strict=True) if text]
    return items


def _sides(settings: OverlapSettings, name: str, corpus: Corpus, chunk: Chunk, *,
           held_out: bool) -> Iterator[pa.RecordBatch]:
    """The documents of a text on one side of the tokenization's split."""
    styles = settings.styles.get(name)
    for batch in corpus.read(chunk):
        wanted = np.array([is_validation(one, settings.split_seed, settings.valid_fraction) == held_out
                           for one in batch.column("document_id").to_pylist()], dtype=bool)
        if styles is not None:
            wanted &= pc.is_in(batch.column("style"), pa.array(styles)).to_numpy(zero_copy_only=False)
        yield batch.filter(pa.array(wanted))
