"""Where two indexed datasets differ first, document by document.

Equal hashes in two manifests answer at once; else indexes are compared before tokens, both in pieces, memory-mapped,
and no further than the first difference.
"""

from __future__ import annotations

from pathlib import Path

from megatron_ext.data.indexed import IndexedReader, bin_path, idx_path
from megatron_ext.data.inspection import Dataset, document_record

_DOCUMENTS_TOGETHER = 2**20
_TOKENS_TOGETHER = 2**24


def first_difference(left: Dataset, right: Dataset) -> str | None:
    """What differs first, in words; None when both hold the same documents."""
    if _same_hashes(left, right):
        return None
    a, b = left.reader, right.reader
    length_differs = _first_other_length(a, b)
    common = min(a.num_documents, b.num_documents) if length_differs is None else length_differs
    limit = int(a.document_ends(common - 1, common)[0]) if common else 0
    position = _first_other_token(a, b, limit)
    if position is not None:
        document = _document_at(a, position, common)
        start = _document_start(a, document)
        return (f"document {document:,} differs first at its token {position - start:,}: "
                f"{a.tokens(position, position + 1)[0]} and {b.tokens(position, position + 1)[0]}"
                f"{_origins(left, right, document)}")
    if length_differs is not None:
        sizes = [int(reader.document_ends(common, common + 1)[0]) - limit for reader in (a, b)]
        return (f"document {common:,} has {sizes[0]:,} and {sizes[1]:,} tokens; all before it are equal"
                f"{_origins(left, right, common)}")
    if a.num_documents != b.num_documents:
        return f"the first {common:,} documents are equal; there are {a.num_documents:,} and {b.num_documents:,}"
    if len(a) != len(b):
        return f"the documents are equal, but are cut into {len(a):,} and {len(b):,} sequences"
    return None


def _same_hashes(left: Dataset, right: Dataset) -> bool:
    """Whether the manifests alone tell that both files are equal."""
    def hashes(dataset: Dataset) -> list[str] | None:
        if dataset.artifact is None:
            return None
        files = dataset.artifact.manifest["files"]
        return [files[path(Path(dataset.split)).name]["sha256"] for path in (bin_path, idx_path)]

    return hashes(left) is not None and hashes(left) == hashes(right)


def _first_other_length(a: IndexedReader, b: IndexedReader) -> int | None:
    """The first document that ends elsewhere in the two files."""
    shorter = min(a.num_documents, b.num_documents)
    for first in range(0, shorter, _DOCUMENTS_TOGETHER):
        last = min(first + _DOCUMENTS_TOGETHER, shorter)
        other = a.document_ends(first, last) != b.document_ends(first, last)
        if other.any():
            return first + int(other.argmax())
    return None


def _first_other_token(a: IndexedReader, b: IndexedReader, limit: int) -> int | None:
    """The first of the positions before `limit` that holds another id."""
    for start in range(0, limit, _TOKENS_TOGETHER):
        end = min(start + _TOKENS_TOGETHER, limit)
        other = a.tokens(start, end) != b.tokens(start, end)
        if other.any():
            return start + int(other.argmax())
    return None


def _document_at(reader: IndexedReader, position: int, num_documents: int) -> int:
    """The document that holds the token at a position: bisection, so that a large index is not read."""
    low, high = 0, num_documents - 1
    while low < high:
        middle = (low + high) // 2
        if int(reader.document_ends(middle, middle + 1)[0]) > position:
            high = middle
        else:
            low = middle + 1
    return low


def _document_start(reader: IndexedReader, document: int) -> int:
    return int(reader.document_ends(document - 1, document)[0]) if document else 0


def _origins(left: Dataset, right: Dataset, document: int) -> str:
    origins = [document_record(dataset, document).get("id") for dataset in (left, right)]
    return f" ({origins[0]} and {origins[1]})" if any(origins) else ""
