"""Look into a tokenized artifact, or any Megatron indexed dataset: counts, lengths, one sequence, damage."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from megatron_ext.artifacts import MANIFEST, Artifact
from megatron_ext.data.indexed import IndexedReader, bin_path
from megatron_ext.data.tokenization import SEQUENCES, SPLITS
from megatron_ext.data.tokenizers import load_tokenizer
from megatron_ext.errors import UserError

_COUNTED_TOGETHER = 2**22  # sequences: what counting takes of memory
_QUANTILES = {"min": 0.0, "25 %": 0.25, "median": 0.5, "75 %": 0.75, "max": 1.0}


@dataclass(frozen=True)
class Dataset:
    """An indexed dataset, and the artifact that it belongs to, if it does."""

    reader: IndexedReader
    split: str
    artifact: Artifact | None


def open_dataset(path: Path, split: str = "train") -> Dataset:
    """Open one split of a tokenized artifact, or the indexed dataset of a prefix (a path without .bin/.idx)."""
    if (path / MANIFEST).exists():
        if split not in SPLITS:
            raise UserError(f"there is no split {split!r}; the splits are: {', '.join(SPLITS)}")
        artifact = Artifact.open(path, kind="tokenized")
        return Dataset(IndexedReader(path / split), split, artifact)
    if path.is_dir():
        names = sorted(file.stem for file in path.glob("*.idx"))
        raise UserError(f"{path} is not a finished tokenized artifact; name a dataset in it: "
                        f"{', '.join(names) or 'none'}")
    prefix = path.with_suffix("") if path.suffix in (".bin", ".idx") else path
    return Dataset(IndexedReader(prefix), prefix.name, None)


def describe(dataset: Dataset) -> Iterator[str]:
    """Lines with counts and the distribution of lengths."""
    reader = dataset.reader
    yield (f"{reader.prefix}: {reader.num_documents:,} documents, {len(reader):,} sequences, {reader.num_tokens:,} "
           f"tokens, {reader.dtype}, {bin_path(reader.prefix).stat().st_size:,} bytes")
    if not len(reader):
        return
    counts = count_lengths(reader.sequence_lengths)
    yield (f"tokens in a sequence: mean {reader.num_tokens / len(reader):,.1f}, "
           + ", ".join(f"{name} {length_quantile(counts, share):,}" for name, share in _QUANTILES.items()))
    for low, high, count, tokens in length_histogram(counts):
        bar = "#" * round(40 * count / len(reader))
        yield f"{low:>10,} – {high:<10,} {count:>12,} sequences {tokens:>16,} tokens {bar}"


def count_lengths(lengths: np.ndarray) -> np.ndarray:
    """How many sequences have each length, int64 `[longest + 1]`; the lengths are read in pieces."""
    counts = np.zeros(int(lengths.max()) + 1, dtype=np.int64)
    for first in range(0, len(lengths), _COUNTED_TOGETHER):
        piece = np.bincount(lengths[first:first + _COUNTED_TOGETHER])
        counts[:len(piece)] += piece
    return counts


def length_quantile(counts: np.ndarray, share: float) -> int:
    """The shortest length that at least this share of the sequences does not exceed; the minimum for 0."""
    ends = np.cumsum(counts)
    return int(np.searchsorted(ends, max(1, share * ends[-1])))


def length_histogram(counts: np.ndarray) -> list[tuple[int, int, int, int]]:
    """(shortest, longest, sequences, tokens) for lengths 1, 2–3, 4–7, …: one row a power of two that occurs."""
    lengths = np.flatnonzero(counts)
    powers = np.frexp(lengths.astype(np.float64))[1] - 1  # exact floor of log2
    rows = []
    for power in np.unique(powers):
        here = lengths[powers == power]
        rows.append((2**int(power), 2 ** (int(power) + 1) - 1, int(counts[here].sum()), int(here @ counts[here])))
    return rows


def sequence_record(dataset: Dataset, sequence: int) -> dict[str, Any]:
    """Where a sequence comes from, as `document_record`."""
    return document_record(dataset, bisect_right(dataset.reader.document_boundaries, sequence) - 1)


def document_record(dataset: Dataset, document: int) -> dict[str, Any]:
    """Where a document, counted with the empty ones, comes from: its row of sequences.parquet (id, document_id, style,
    …); {} without an artifact.
    """
    if dataset.artifact is None:
        return {}
    # The filter passes over row groups by their statistics, which works for columns without nulls alone.
    table = pq.read_table(dataset.artifact.path / SEQUENCES,
                          filters=[("split", "==", dataset.split), ("document", "==", document)])
    if len(table) != 1:
        raise UserError(f"{dataset.artifact.path / SEQUENCES} has {len(table)} rows for {dataset.split} document "
                        f"{document} instead of one: it is damaged")
    return table.to_pylist()[0]


def document_sequences(dataset: Dataset, document: int) -> range:
    """The sequences of a document, counted from 0 with the empty ones; an empty document has none.

    Raises UserError when there is no such document.
    """
    if not 0 <= document < dataset.reader.num_documents:
        raise UserError(f"there is no document {document}; {dataset.reader.prefix} has "
                        f"{dataset.reader.num_documents:,}")
    first, last = dataset.reader.document_boundaries[document:document + 2]
    return range(int(first), int(last))


def decode_sequence(dataset: Dataset, sequence: int, tokenizer_folder: Path) -> str:
    """The text of a sequence, special tokens shown. Raises UserError when the tokenizer is another one."""
    if not 0 <= sequence < len(dataset.reader):
        raise UserError(f"there is no sequence {sequence}; {dataset.reader.prefix} has {len(dataset.reader):,}")
    made_with = dataset.artifact.counts if dataset.artifact is not None else {}
    tokenizer = load_tokenizer(tokenizer_folder, made_with.get("encoder", "auto"))
    if made_with.get("tokenizer_sha256", tokenizer.sha256) != tokenizer.sha256:
        raise UserError(f"{tokenizer_folder} is not the tokenizer that {dataset.reader.prefix} was made with: "
                        f"{tokenizer.vocabulary_path.name} has another sha256")
    return tokenizer.encoder.decode(dataset.reader.read(sequence).tolist())


def verify(dataset: Dataset) -> list[str]:
    """Read everything; one line for each fault that is found (an empty list: all is well)."""
    reader, artifact = dataset.reader, dataset.artifact
    if artifact is None:
        return []  # opening has checked all that a bare dataset can tell: there are no hashes
    problems = artifact.verify()
    largest = reader.largest_token_id()
    if largest >= artifact.counts["vocab_size"]:
        problems.append(f"{bin_path(reader.prefix)}: token id {largest}, but the vocabulary has "
                        f"{artifact.counts['vocab_size']:,}")
    counted = artifact.counts[dataset.split]
    for name, found in (("documents", reader.num_documents), ("tokens", reader.num_tokens)):
        if found != counted[name]:
            problems.append(f"{reader.prefix}: {found:,} {name}, but the manifest counts {counted[name]:,}")
    return problems
