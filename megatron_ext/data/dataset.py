"""Samples of a run: packed sequences cut from tokenized documents, in an order that depends on the seed alone.

One pass (epoch) over a source is its documents in a shuffled order, laid end to end and cut every `seq_length` tokens;
the samples of the pass are then shuffled. The last sample is padded and its padding masked, so that one pass shows
every token exactly once.

Shapes: s = seq_length, b = samples in a micro-batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from megatron_ext.data.blend import BlendPlan
from megatron_ext.data.indexed import IndexedReader


@dataclass(frozen=True)
class Sample:
    """One packed sequence. `tokens[i]` predicts `labels[i]`; `mask[i]` is 0 where that prediction does not count."""

    tokens: np.ndarray  # int64 [s]
    labels: np.ndarray  # int64 [s]
    mask: np.ndarray  # float32 [s]
    source: int
    """Index of the source in the blend."""


@dataclass(frozen=True)
class Passage:
    """A stretch of one document inside a sample."""

    sequence: int
    """Index of the document in its indexed dataset."""
    start: int
    """Position of the sample's first token of it in the document."""
    num_tokens: int


class PackedSource:
    """Random access to the samples of one source, over as many passes as asked for."""

    def __init__(self, prefix: Path, name: str, seq_length: int, seed: int, *, shuffle: bool = True) -> None:
        self.name = name
        self.seq_length = seq_length
        self.reader = IndexedReader(prefix)
        self.num_tokens = int(self.reader.sequence_lengths.sum(dtype=np.int64))
        self.samples_per_epoch = -(-self.num_tokens // seq_length)
        self._seed = seed
        self._shuffle = shuffle
        # Two passes are kept: an iteration at the seam of two passes needs both.
        self._epoch_order = lru_cache(maxsize=2)(self._build_epoch_order)

    def read(self, index: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, labels and mask of sample `index` (counted over all passes), each `[s]`."""
        start, end = self._token_range(index)
        text = np.zeros(self.seq_length + 1, dtype=np.int64)
        stream_end = min(end + 1, self.num_tokens)  # one token more: the last label
        parts = [self.reader.read(passage.sequence, passage.start, passage.num_tokens)
                 for passage in self._passages(index // self.samples_per_epoch, start, stream_end)]
        text[: stream_end - start] = np.concatenate(parts)
        mask = np.zeros(self.seq_length, dtype=np.float32)
        mask[: stream_end - start - 1] = 1.0
        return text[:-1], text[1:], mask

    def seen_tokens(self, num_samples: int) -> int:
        """Tokens in the first `num_samples` samples, exactly: the padding of a pass's last sample does not count."""
        if not self.samples_per_epoch:
            return 0
        epochs, rest = divmod(num_samples, self.samples_per_epoch)
        shown = self._epoch_order(epochs)[2][:rest]
        padding = self.samples_per_epoch * self.seq_length - self.num_tokens
        in_pass = rest * self.seq_length - (padding if self.samples_per_epoch - 1 in shown else 0)
        return epochs * self.num_tokens + in_pass

    def passages(self, index: int) -> list[Passage]:
        """The documents, or parts of them, that sample `index` shows."""
        start, end = self._token_range(index)
        return self._passages(index // self.samples_per_epoch, start, end)

    def _token_range(self, index: int) -> tuple[int, int]:
        """Where sample `index` lies in the stream of its pass: [start, end) in tokens."""
        epoch, place = divmod(index, self.samples_per_epoch)
        start = int(self._epoch_order(epoch)[2][place]) * self.seq_length
        return start, min(start + self.seq_length, self.num_tokens)

    def _passages(self, epoch: int, start: int, end: int) -> list[Passage]:
        documents, ends, _ = self._epoch_order(epoch)
        passages = []
        place = int(np.searchsorted(ends, start, side="right"))
        while start < end:
            document, document_end = int(documents[place]), int(ends[place])
            offset = start - (document_end - int(self.reader.sequence_lengths[document]))
            taken = min(end, document_end) - start
            if taken:
                passages.append(Passage(document, offset, taken))
            start += taken
            place += 1
        return passages

    def _build_epoch_order(self, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Documents in the order of the pass, where each ends in its stream, and the shuffled sample numbers."""
        num_documents = len(self.reader.sequence_lengths)
        if self._shuffle:
            name_key = int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:8], "little")
            random = np.random.Generator(np.random.PCG64([self._seed, name_key, epoch]))
            documents, samples = random.permutation(num_documents), random.permutation(self.samples_per_epoch)
        else:
            documents, samples = np.arange(num_documents), np.arange(self.samples_per_epoch)
        ends = np.cumsum(self.reader.sequence_lengths[documents], dtype=np.int64)
        return documents, ends, samples


class BlendedDataset:
    """All samples of a run by their position in it."""

    def __init__(self, plan: BlendPlan, sources: Sequence[PackedSource]) -> None:
        self.plan = plan
        self.sources = list(sources)

    def __len__(self) -> int:
        return self.plan.num_samples

    def __getitem__(self, position: int) -> Sample:
        number = int(self.plan.order[position])
        tokens, labels, mask = self.sources[number].read(int(self.plan.index_in_source[position]))
        return Sample(tokens, labels, mask, number)

    def exposure(self, consumed_samples: int) -> dict[str, dict[str, float]]:
        """The exposure ledger: what the first `consumed_samples` samples of the run have shown of each source."""
        seen = self.plan.samples_seen(consumed_samples)
        ledger = {}
        for source, planned in zip(self.sources, self.plan.sources, strict=True):
            tokens = source.seen_tokens(seen[source.name])
            ledger[source.name] = {
                "available_tokens": source.num_tokens,
                "planned_tokens": source.seen_tokens(planned.num_samples),
                "seen_tokens": tokens,
                # A pass shows every token before the next one shows any again.
                "unique_tokens": min(tokens, source.num_tokens),
                "epochs": tokens / source.num_tokens if source.num_tokens else 0.0,
                "samples": seen[source.name],
            }
        return ledger

    def passages(self, position: int) -> tuple[str, list[Passage]]:
        """The source's name and the documents that the sample at `position` shows."""
        source = self.sources[int(self.plan.order[position])]
        return source.name, source.passages(int(self.plan.index_in_source[position]))


def micro_batch_positions(iteration: int, micro_batch: int, *, global_batch_size: int, micro_batch_size: int,
                          dp_rank: int, dp_size: int) -> range:
    """Positions in the run of the samples in one micro-batch of one data-parallel rank.

    An iteration holds the same samples for any layout; only how they are dealt to ranks and micro-batches differs.
    """
    first = iteration * global_batch_size + (micro_batch * dp_size + dp_rank) * micro_batch_size
    return range(first, first + micro_batch_size)
