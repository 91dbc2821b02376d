"""The blend of a run: how many samples of each source, in which order, and what that exposes the model to.

Everything here is decided before the run and is a pure function of the configuration: the sample at position i of the
run is the same for any number of ranks, any layout and after any restart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from megatron_ext.config import RunConfig, SourceConfig
from megatron_ext.errors import UserError


@dataclass(frozen=True)
class SourcePlan:
    """What a run takes from one source."""

    name: str
    available_tokens: int
    """Tokens of the source's training split."""
    samples_per_epoch: int
    """Samples in one pass; the last one is padded, so that a pass shows every token exactly once."""
    num_samples: int
    """Samples in the run."""

    @property
    def epochs(self) -> float:
        """Passes over the source in the run."""
        return self.num_samples / self.samples_per_epoch if self.samples_per_epoch else 0.0


@dataclass(frozen=True)
class BlendPlan:
    """The order of all samples of a run."""

    sources: tuple[SourcePlan, ...]
    seq_length: int

    @property
    def num_samples(self) -> int:
        """Samples in the run."""
        return sum(source.num_samples for source in self.sources)

    @cached_property
    def order(self) -> np.ndarray:
        """Source index of every sample of the run, uint16 `[num_samples]`.

        The k-th of a source's n samples stands at the fraction (k + 1/2) / n of the run: every source is spread
        evenly, and every stretch of the run has the blend's proportions within one sample.
        """
        counts = [source.num_samples for source in self.sources]
        positions = np.concatenate([(np.arange(n) + 0.5) / n for n in counts if n] or [np.empty(0)])
        owners = np.repeat(np.arange(len(counts), dtype=np.uint16), counts)
        return owners[np.argsort(positions, kind="stable")]

    @cached_property
    def index_in_source(self) -> np.ndarray:
        """For every sample of the run: how many samples of its source came before it, int64 `[num_samples]`."""
        index = np.empty(self.num_samples, dtype=np.int64)
        for number, source in enumerate(self.sources):
            index[self.order == number] = np.arange(source.num_samples)
        return index

    def samples_seen(self, consumed_samples: int) -> dict[str, int]:
        """Samples of each source among the first `consumed_samples` of the run."""
        counts = np.bincount(self.order[:consumed_samples], minlength=len(self.sources))
        return {source.name: int(count) for source, count in zip(self.sources, counts, strict=True)}


def plan_blend(config: RunConfig, sizes: Mapping[str, int]) -> BlendPlan:
    """Plan a run's blend.

    Args:
        sizes: source name -> tokens of its training split.

    Raises UserError when the amounts do not add up to the budget, or need more passes over a source than it allows.
    """
    seq_length = config.data.seq_length
    total = config.train_iters * config.train.global_batch_size
    per_epoch = {name: -(-size // seq_length) for name, size in sizes.items()}
    fixed = {
        name: _fixed_samples(source, per_epoch[name], seq_length, total)
        for name, source in config.data.sources.items() if not source.fill
    }
    counts = fixed | _fill(config, total - sum(fixed.values()), per_epoch)
    _refuse_wrong_sum(config, counts, total)
    _refuse_repetition(config, counts, per_epoch, sizes)
    return BlendPlan(
        tuple(SourcePlan(name, sizes[name], per_epoch[name], counts[name]) for name in config.data.sources), seq_length
    )


def _fixed_samples(source: SourceConfig, per_epoch: int, seq_length: int, total: int) -> int:
    if source.tokens is not None:
        return -(-source.tokens // seq_length)
    if source.epochs is not None:
        return round(source.epochs * per_epoch)
    assert source.fraction is not None
    return round(source.fraction * total)


def _fill(config: RunConfig, remaining: int, per_epoch: Mapping[str, int]) -> dict[str, int]:
    """Share what is left among the `fill` sources in proportion to their size, by largest remainder."""
    names = [name for name, source in config.data.sources.items() if source.fill]
    weight = sum(per_epoch[name] for name in names)
    if not names or remaining <= 0 or weight == 0:
        return dict.fromkeys(names, 0)
    exact = {name: remaining * per_epoch[name] / weight for name in names}
    counts = {name: int(share) for name, share in exact.items()}
    for name in sorted(names, key=lambda name: counts[name] - exact[name])[: remaining - sum(counts.values())]:
        counts[name] += 1
    return counts


def _refuse_wrong_sum(config: RunConfig, counts: dict[str, int], total: int) -> None:
    """Check the sum; rounding of the shares (under one sample a source) is settled on the largest source."""
    difference = total - sum(counts.values())
    if difference and abs(difference) < max(len(counts), 2) and max(counts.values()) > abs(difference):
        counts[max(counts, key=lambda name: counts[name])] += difference
        return
    if difference:
        seq_length = config.data.seq_length
        amounts = ", ".join(f"{name} {count * seq_length:,}" for name, count in counts.items())
        raise UserError(
            f"data.sources give {sum(counts.values()) * seq_length:,} tokens ({amounts}) but the run takes "
            f"{total * seq_length:,} (train.budget_tokens {config.train.budget_tokens:,} in whole iterations of "
            f"{config.tokens_per_iteration:,}); change an amount, or let one source take the rest with `fill: true`"
        )


def _refuse_repetition(config: RunConfig, counts: Mapping[str, int], per_epoch: Mapping[str, int],
                       sizes: Mapping[str, int]) -> None:
    problems = []
    for name, source in config.data.sources.items():
        allowed = round(source.max_epochs * per_epoch[name])
        if counts[name] > allowed:
            asked = counts[name] * config.data.seq_length
            problems.append(f"source {name!r} has {sizes[name]:,} tokens and is asked for {asked:,} "
                            f"({asked / max(sizes[name], 1):.2f} epochs), over its max_epochs of {source.max_epochs:g}")
    if problems:
        raise UserError("; ".join(problems) + ". Lower train.budget_tokens or the source's amount, or allow the "
                        "repetition with data.sources.<name>.max_epochs")
