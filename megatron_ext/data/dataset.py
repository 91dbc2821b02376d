"""Samples of a run: packed sequences cut from tokenized documents, in an order that depends on the seed alone.

One pass (epoch) over a source is its documents in a shuffled order, laid end to end and cut every `seq_length` tokens;
the samples of the pass are then shuffled. The last sample is padded and its padding masked, so that one pass shows
every token exactly once.

With `separate_documents` a document's last token predicts nothing: the token after it belongs to another document.

Shapes: s = seq_length, b = samples in a micro-batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from megatron_ext.data.blend import BlendPlan
from megatron_ext.data.indexed import IndexedReader
from megatron_ext.data.past import SourceRead


class Sample(NamedTuple):
    """One packed sequence. `tokens[i]` predicts `labels[i]`; `mask[i]` is 0 where that prediction does not count."""

    tokens: np.ndarray  # int64 [s]
    labels: np.ndarray  # int64 [s]
    mask: np.ndarray  # float32 [s]
    documents: np.ndarray  # int64 [s], number of the document within the sample; padding is a document of its own
    source: int = 0
    """Index of the source in the blend."""


@dataclass(frozen=True)
class Passage:
    """A stretch of one document inside a sample."""

    sequence: int
    """Index of the document in its indexed dataset."""
    start: int
    """Position of the sample's first token of it in the document."""
    num_tokens: int


@dataclass(frozen=True)
class _Pass:
    """One pass over a source."""

    documents: np.ndarray  # int64 [documents], in the order of the pass
    ends: np.ndarray  # int64 [documents], where each ends in the pass's stream of tokens
    samples: np.ndarray  # int64 [samples], their shuffled order

    @cached_property
    def starts(self) -> np.ndarray:
        """Where each document starts in the stream."""
        return np.concatenate([[0], self.ends[:-1]])


class PackedSource:
    """Random access to the samples of one source, over as many passes as asked for."""

    def __init__(self, prefix: Path, name: str, seq_length: int, seed: int, *, shuffle: bool = True,
                 separate_documents: bool = False, read: SourceRead | None = None) -> None:
        """
        Args:
            read: how far a trunk has read the source; what it has read stays where it was in the order.
        """
        self.name = name
        self.seq_length = seq_length
        self.separate_documents = separate_documents
        self.reader = IndexedReader(prefix)
        if shuffle:
            self.reader.expect_random_reads()
        self.num_tokens = int(self.reader.sequence_lengths.sum(dtype=np.int64))
        self.samples_per_epoch = -(-self.num_tokens // seq_length)
        self.order_name = read.order_name if read else name
        self.seeds = read.seeds_after(seed) if read else ((0, seed),)
        self._shuffle = shuffle
        # Two passes are kept: an iteration at the seam of two passes needs both.
        self._pass = lru_cache(maxsize=2)(self._build_pass)
        self._count_all = lru_cache(maxsize=None)(lambda epoch: self._count(epoch).sum(axis=1))

    def read(self, index: int) -> Sample:
        """Sample `index`, counted over all passes."""
        start, end = self._token_range(index)
        passages = self._passages(index // self.samples_per_epoch, start, min(end + 1, self.num_tokens))
        lengths = [passage.num_tokens for passage in passages]
        num_read = sum(lengths)  # one token more than is shown: the last label; none after the end of the pass
        text = np.zeros(self.seq_length + 1, dtype=np.int64)
        text[:num_read] = np.concatenate([
            self.reader.read(passage.sequence, passage.start, passage.num_tokens) for passage in passages])
        documents = np.full(self.seq_length + 1, len(passages), dtype=np.int64)
        documents[:num_read] = np.repeat(np.arange(len(passages)), lengths)
        mask = np.zeros(self.seq_length, dtype=np.float32)
        mask[: num_read - 1] = 1.0
        if self.separate_documents:
            mask *= documents[:-1] == documents[1:]
        return Sample(text[:-1], text[1:], mask, documents[:-1])

    def exposure(self, num_samples: int) -> dict[str, int]:
        """What the first `num_samples` samples show, counted exactly.

        `seen_tokens`: the padding of a pass's last sample does not count. `masked_tokens`: those of them that predict
        nothing. `truncated_tokens`: those of them whose document begins in another sample, so that they are seen
        without its beginning.
        """
        totals = np.zeros(3, dtype=np.int64)
        if self.samples_per_epoch:
            epochs, rest = divmod(num_samples, self.samples_per_epoch)
            for epoch in range(epochs + bool(rest)):
                if epoch < epochs:
                    totals += self._count_all(epoch)
                else:
                    totals += self._count(epoch)[:, self._pass(epoch).samples[:rest]].sum(axis=1)
        return dict(zip(("seen_tokens", "masked_tokens", "truncated_tokens"), totals.tolist(), strict=True))

    def _count(self, epoch: int) -> np.ndarray:
        """Seen, masked and truncated tokens of a pass's samples, in the order of the stream: int64 `[3, samples]`."""
        order = self._pass(epoch)
        starts = np.arange(self.samples_per_epoch, dtype=np.int64) * self.seq_length
        ends = np.minimum(starts + self.seq_length, self.num_tokens)
        predicts_nothing = order.ends[-1:]
        if self.separate_documents:
            predicts_nothing = order.ends[order.ends > order.starts]  # an empty document has no last token
        masked = np.bincount((predicts_nothing - 1) // self.seq_length, minlength=self.samples_per_epoch)
        first = np.searchsorted(order.ends, starts, side="right")  # the document at the sample's first token
        truncated = np.where(order.starts[first] < starts, np.minimum(order.ends[first], ends) - starts, 0)
        return np.stack([ends - starts, masked, truncated])

    def passages(self, index: int) -> list[Passage]:
        """The documents, or parts of them, that sample `index` shows."""
        start, end = self._token_range(index)
        return self._passages(index // self.samples_per_epoch, start, end)

    def _token_range(self, index: int) -> tuple[int, int]:
        """Where sample `index` lies in the stream of its pass: [start, end) in tokens."""
        epoch, place = divmod(index, self.samples_per_epoch)
        start = int(self._pass(epoch).samples[place]) * self.seq_length
        return start, min(start + self.seq_length, self.num_tokens)

    def _passages(self, epoch: int, start: int, end: int) -> list[Passage]:
        order = self._pass(epoch)
        passages = []
        place = int(np.searchsorted(order.ends, start, side="right"))
        while start < end:
            document_start, document_end = int(order.starts[place]), int(order.ends[place])
            taken = min(end, document_end) - start
            if taken:
                passages.append(Passage(int(order.documents[place]), start - document_start, taken))
            start += taken
            place += 1
        return passages

    def _build_pass(self, epoch: int) -> _Pass:
        num_documents = len(self.reader.sequence_lengths)
        if self._shuffle:
            begins, ends = epoch * self.samples_per_epoch, (epoch + 1) * self.samples_per_epoch
            random = self._random(next(seed for first, seed in reversed(self.seeds) if first <= begins), epoch)
            documents, samples = random.permutation(num_documents), random.permutation(self.samples_per_epoch)
            for first, seed in self.seeds:  # a branch with a seed of its own deals out what is left of the pass
                if begins < first < ends:
                    rest = samples[first - begins:]
                    samples[first - begins:] = self._random(seed, epoch, first).permutation(rest)
        else:
            documents, samples = np.arange(num_documents), np.arange(self.samples_per_epoch)
        return _Pass(documents, np.cumsum(self.reader.sequence_lengths[documents], dtype=np.int64), samples)

    def _random(self, seed: int, *place: int) -> np.random.Generator:
        name_key = int.from_bytes(hashlib.sha256(self.order_name.encode()).digest()[:8], "little")
        return np.random.Generator(np.random.PCG64([seed, name_key, *place]))


class BlendedDataset:
    """All samples of a run by their position, which counts from the beginning of its trunk, if it has one."""

    def __init__(self, plan: BlendPlan, sources: Sequence[PackedSource]) -> None:
        self.plan = plan
        self.sources = list(sources)

    def __len__(self) -> int:
        return self.plan.num_samples

    def __getitem__(self, position: int) -> Sample:
        number, index = self._place(position)
        return self.sources[number].read(index)._replace(source=number)

    def exposure(self, consumed_samples: int,
                 passed_over: Sequence[tuple[int, int]] = ()) -> dict[str, dict[str, float]]:
        """The exposure ledger: what the first `consumed_samples` samples, the trunk's included, have shown of each
        source.

        Args:
            passed_over: ranges [start, end) of them, in the run itself, that were not shown.
        """
        ledger = {}
        for source, planned, planned_tokens in zip(self.sources, self.plan.sources, self._planned_tokens, strict=True):
            before = planned.read.exposure if planned.read else {}
            counts = self._difference(source, self.plan.start, consumed_samples)
            left_out = [self._difference(source, start, end) for start, end in passed_over]
            counts = {key: int(before.get(key, 0)) + value - sum(part[key] for part in left_out)
                      for key, value in counts.items()}
            num_samples, tokens = counts.pop("samples"), counts["seen_tokens"]
            ledger[source.name] = {
                "available_tokens": source.num_tokens,
                "planned_tokens": planned_tokens,
                **counts,
                # A pass shows every token before the next one shows any again.
                "unique_tokens": min(tokens, source.num_tokens),
                "epochs": tokens / source.num_tokens if source.num_tokens else 0.0,
                "samples": num_samples,
            }
            if passed_over or "passed_over_tokens" in before:
                ledger[source.name]["passed_over_tokens"] = int(before.get("passed_over_tokens", 0)) + sum(
                    part["seen_tokens"] for part in left_out)
        return ledger

    def _difference(self, source: PackedSource, start: int, end: int) -> dict[str, int]:
        """What the samples [start, end) of the run show of a source."""
        before, after = (self.plan.samples_seen(place)[source.name] for place in (start, end))
        counts, earlier = source.exposure(after), source.exposure(before)
        return {**{key: value - earlier[key] for key, value in counts.items()}, "samples": after - before}

    @cached_property
    def _planned_tokens(self) -> list[int]:
        return [source.exposure(planned.num_in_all)["seen_tokens"]
                for source, planned in zip(self.sources, self.plan.sources, strict=True)]

    def passages(self, position: int) -> tuple[str, list[Passage]]:
        """The source's name and the documents that the sample at `position` shows."""
        number, index = self._place(position)
        return self.sources[number].name, self.sources[number].passages(index)

    def _place(self, position: int) -> tuple[int, int]:
        """(number of the source, index in it) of a position."""
        assert position >= self.plan.start, f"sample {position} is the trunk's"
        return (int(self.plan.order[position - self.plan.start]),
                int(self.plan.index_in_source[position - self.plan.start]))


def micro_batch_positions(iteration: int, micro_batch: int, *, global_batch_size: int, micro_batch_size: int,
                          dp_rank: int, dp_size: int) -> range:
    """Positions in the run of the samples in one micro-batch of one data-parallel rank.

    An iteration holds the same samples for any layout; only how they are dealt to ranks and micro-batches differs.
    """
    first = iteration * global_batch_size + (micro_batch * dp_size + dp_rank) * micro_batch_size
    return range(first, first + micro_batch_size)
