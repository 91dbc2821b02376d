"""Held-out documents, each by itself, cut into windows that together predict each of its tokens once.

    window 0    <context> t0 t1 t2 t3 …      predicts t0 … t(w-1)
    window 1    starts `stride` tokens later and predicts what window 0 did not: `stride` tokens, each of which sees at
                least w - stride tokens before it

The context of a document's first token is the end-of-document id, which stands before every document in training, or
the begin-of-document id where the documents have one; so all of a text is predicted, and nothing else.

Shapes: w = tokens that the model sees at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq

from megatron_ext.artifacts import Artifact
from megatron_ext.data.dataset import Sample
from megatron_ext.data.indexed import IndexedReader

SEQUENCES = "sequences.parquet"
SPLIT = "valid"


@dataclass(frozen=True)
class Document:
    """A held-out document."""

    id: str
    cluster: str
    """Id of the document that it is, was rewritten from, or is a copy of: documents of one cluster are no independent
    evidence."""
    num_bytes: int
    """UTF-8 bytes of its text."""
    tokens: np.ndarray
    """The context and the ids of its text, `[1 + num_tokens]`."""

    @property
    def num_tokens(self) -> int:
        """Tokens of the text, all of which are predicted."""
        return len(self.tokens) - 1


@dataclass(frozen=True)
class Window:
    """What a model sees of a document at once."""

    document: int
    """Index of the document."""
    start: int
    """Place of the window's first token in the document's tokens."""
    first: int
    """Predictions before this one were made by an earlier window."""
    num_predictions: int
    """Those of the window, `first` of them included."""


def held_out_documents(folder: Path, max_tokens: int) -> list[Document]:
    """Documents of a tokenized artifact's validation split in their order, whole ones until `max_tokens` are reached.

    Documents without a token of text are left out.
    """
    artifact = Artifact.open(folder, kind="tokenized")
    rows = pq.read_table(artifact.path / SEQUENCES, columns=["split", "sequence", "id", "document_id", "num_bytes"])
    rows = rows.filter(pc.and_(pc.equal(rows["split"], SPLIT), pc.is_valid(rows["sequence"])))
    reader = IndexedReader(artifact.path / SPLIT)
    ends_with_eod, begins_with_bos = (artifact.settings.get(key, default)
                                      for key, default in (("append_eod", True), ("prepend_bos", False)))
    context = [] if begins_with_bos else [artifact.counts["eod_token_id"]]
    documents, num_tokens = [], 0
    for row in rows.to_pylist():
        if num_tokens >= max_tokens:
            break
        ids = reader.read(row["sequence"]).astype(np.int64)
        tokens = np.concatenate([np.array(context, dtype=np.int64), ids[:-1] if ends_with_eod else ids])
        if len(tokens) > 1:
            documents.append(Document(row["id"], row["document_id"], row["num_bytes"], tokens))
            num_tokens += documents[-1].num_tokens
    return join_copies(documents)


def join_copies(documents: Sequence[Document]) -> list[Document]:
    """The documents, with clusters that hold the same text under different ids made one, called after its first."""
    cluster_of_text: dict[bytes, str] = {}
    joined: dict[str, str] = {}  # cluster -> an earlier one that holds a text of it, too

    def first(cluster: str) -> str:
        while cluster in joined:
            cluster = joined[cluster]
        return cluster

    places = {document.cluster: place for place, document in reversed(list(enumerate(documents)))}
    for document in documents:
        same = {first(document.cluster), first(cluster_of_text.setdefault(document.tokens.tobytes(), document.cluster))}
        if len(same) == 2:
            earlier, later = sorted(same, key=places.__getitem__)
            joined[later] = earlier
    return [replace(document, cluster=first(document.cluster)) for document in documents]


def windows_of(documents: Sequence[Document], seq_length: int, stride: int) -> list[Window]:
    """The windows of all documents, in order."""
    return [window for number, document in enumerate(documents)
            for window in _windows(number, document.num_tokens, seq_length, stride)]


def _windows(document: int, num_tokens: int, seq_length: int, stride: int) -> Iterator[Window]:
    predicted = start = 0
    while predicted < num_tokens:
        end = min(start + seq_length, num_tokens)
        yield Window(document, start, predicted - start, end - start)
        predicted, start = end, start + stride


def padded_length(window: Window, seq_length: int, multiple_of: int) -> int:
    """Tokens of the sample that holds a window: a quarter more at the most, and of few different lengths.

    Windows of one length go through the model together.
    """
    units = -(-window.num_predictions // multiple_of)
    step = 2 ** max(0, (units - 1).bit_length() - 3)  # up to 8 units each number; from there 4 in each doubling
    return multiple_of * min(-(-units // step) * step, -(-seq_length // multiple_of))


def read_window(window: Window, documents: Sequence[Document], length: int) -> Sample:
    """A window as a sample of `length` tokens; what follows the text predicts nothing."""
    tokens, labels = np.zeros((2, length), dtype=np.int64)
    text = documents[window.document].tokens[window.start:window.start + window.num_predictions + 1]
    tokens[:len(text) - 1], labels[:len(text) - 1] = text[:-1], text[1:]
    places = np.arange(length)
    mask = ((places >= window.first) & (places < window.num_predictions)).astype(np.float32)
    return Sample(tokens, labels, mask, (places >= window.num_predictions).astype(np.int64))
