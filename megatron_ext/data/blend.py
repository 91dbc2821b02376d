"""The blend of a run: how many samples of each source, in which order, and what that exposes the model to.

Everything here is decided before the run and is a pure function of the configuration: the sample at position i of the
run is the same for any number of ranks, any layout and after any restart.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property, lru_cache

import numpy as np

from megatron_ext.config import RunConfig, SourceConfig
from megatron_ext.data.past import Past, SourceRead
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
    """Samples in the run, without its trunk."""
    read: SourceRead | None = None
    """How far the trunk has read it."""

    @property
    def num_before(self) -> int:
        """Samples that the trunk has read."""
        return self.read.num_samples if self.read else 0

    @property
    def num_in_all(self) -> int:
        """Samples in the run and its trunk."""
        return self.num_before + self.num_samples

    @property
    def epochs(self) -> float:
        """Passes over the source in the run and its trunk."""
        return self.num_in_all / self.samples_per_epoch if self.samples_per_epoch else 0.0


@dataclass(frozen=True)
class BlendPlan:
    """The order of all samples of a run. Positions count from the beginning of its trunk, if it has one."""

    sources: tuple[SourcePlan, ...]
    seq_length: int
    shares: tuple[Fraction, ...] = ()
    """Of each source in what follows `blend_from`; (): as the numbers of samples say."""
    start: int = 0
    """Position of the run's first sample: those before it are the trunk's."""
    blend_from: int = 0
    """Position from which the amounts count."""
    left: Mapping[str, SourceRead] = field(default_factory=dict)
    """Sources that the trunk has read and the run does not."""

    @property
    def num_samples(self) -> int:
        """Samples in the run itself."""
        return sum(source.num_samples for source in self.sources)

    @cached_property
    def order(self) -> np.ndarray:
        """Source index of every sample of the run itself, uint16 `[num_samples]`."""
        total = self.start - self.blend_from + self.num_samples
        shares = self.shares or tuple(Fraction(source.num_samples, total) for source in self.sources)
        return spread(shares, total)[self.start - self.blend_from:]

    @cached_property
    def index_in_source(self) -> np.ndarray:
        """For every sample of the run: how many samples of its source came before it, int64 `[num_samples]`."""
        index = np.empty(self.num_samples, dtype=np.int64)
        for number, source in enumerate(self.sources):
            index[self.order == number] = np.arange(source.num_before, source.num_in_all)
        return index

    def samples_seen(self, consumed_samples: int) -> dict[str, int]:
        """Samples of each source among the first `consumed_samples` of the run and its trunk."""
        counts = np.bincount(self.order[:consumed_samples - self.start], minlength=len(self.sources))
        return {source.name: source.num_before + int(count)
                for source, count in zip(self.sources, counts, strict=True)}


@lru_cache(maxsize=8)
def spread(shares: tuple[Fraction, ...], total: int) -> np.ndarray:
    """Source index of each of `total` samples, uint16 `[total]`.

    The k-th sample of a source with the share f of all stands at (k + 1/2) / f: every source is spread evenly, every
    stretch has the blend's proportions within one sample, and a longer run begins with the samples of a shorter one.
    """
    places, owners = [], []
    for number, share in enumerate(shares):
        count = int(share * (total + len(shares))) + 2 if share else 0  # as many as can be among the first
        # The numerator is exact: places that are equal as fractions are equal as floats, and the first source wins.
        places.append((2.0 * np.arange(count) + 1) * float(share.denominator) / float(2 * share.numerator or 1))
        owners.append(np.full(count, number, dtype=np.uint16))
    return np.concatenate(owners)[np.argsort(np.concatenate(places), kind="stable")[:total]]


def plan_blend(config: RunConfig, sizes: Mapping[str, int], past: Past | None = None) -> BlendPlan:
    """Plan a run's blend.

    Args:
        sizes: source name -> tokens of its training split.
        past: what the run's trunk has read; None: it has no trunk.

    Raises UserError when the amounts do not add up to the budget, or need more passes over a source than it allows.
    """
    past = past or Past(0, {}, {})
    seq_length, start, blend_from = config.data.seq_length, past.num_samples, _blend_from(config, past)
    per_epoch = _samples_per_epoch(config, sizes)
    shares = _rounded_shares(config, per_epoch, config.num_samples - blend_from)
    if is_proportional(config):
        shares = _given_shares(config, per_epoch)
    order = spread(shares, config.num_samples - blend_from)[start - blend_from:]
    counts = np.bincount(order, minlength=len(shares)).tolist()
    sources = tuple(SourcePlan(name, sizes[name], per_epoch[name], count, past.sources.get(name))
                    for name, count in zip(config.data.sources, counts, strict=True))
    _refuse_repetition(config, sources)
    return BlendPlan(sources, seq_length, shares, start, blend_from, past.left)


def is_proportional(config: RunConfig) -> bool:
    """Whether every amount is a share of the run, so that the order of samples does not depend on the budget."""
    return all(source.fill or source.fraction is not None for source in config.data.sources.values())


def order_of_rounded_shares(config: RunConfig, sizes: Mapping[str, int]) -> np.ndarray:
    """The order that older versions gave every run: it changes with the budget when shares are no whole samples."""
    return spread(_rounded_shares(config, _samples_per_epoch(config, sizes), config.num_samples), config.num_samples)


def _samples_per_epoch(config: RunConfig, sizes: Mapping[str, int]) -> dict[str, int]:
    return {name: -(-size // config.data.seq_length) for name, size in sizes.items()}


def _blend_from(config: RunConfig, past: Past) -> int:
    if is_proportional(config):
        return 0
    return past.num_samples if past.blend_from is None else past.blend_from


def _rounded_shares(config: RunConfig, per_epoch: Mapping[str, int], total: int) -> tuple[Fraction, ...]:
    """Each source's share of `total` samples, in whole samples. Raises UserError when they do not add up."""
    seq_length = config.data.seq_length
    fixed = {
        name: _fixed_samples(source, per_epoch[name], seq_length, total)
        for name, source in config.data.sources.items() if not source.fill
    }
    counts = fixed | _fill(config, total - sum(fixed.values()), per_epoch)
    _refuse_wrong_sum(config, counts, total)
    return tuple(Fraction(counts[name], total) for name in config.data.sources)


def _given_shares(config: RunConfig, per_epoch: Mapping[str, int]) -> tuple[Fraction, ...]:
    """The shares as they are written, not rounded to samples."""
    sources = config.data.sources
    given = {name: Fraction(str(source.fraction)) for name, source in sources.items() if not source.fill}
    weight = sum(per_epoch[name] for name, source in sources.items() if source.fill)
    rest = max(Fraction(1) - sum(given.values()), Fraction(0))
    shares = given | {name: rest * per_epoch[name] / weight for name, source in sources.items()
                      if source.fill and weight}
    whole = sum(shares.values())
    return tuple(shares.get(name, Fraction(0)) / whole for name in sources)


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
            f"{config.tokens_per_iteration:,}{_less_trunk(config, total)}); change an amount, or let one source take "
            "the rest with `fill: true`"
        )


def _less_trunk(config: RunConfig, total: int) -> str:
    tokens = (config.num_samples - total) * config.data.seq_length
    return f", less {tokens:,} of the trunk" if tokens else ""


def _refuse_repetition(config: RunConfig, plans: tuple[SourcePlan, ...]) -> None:
    problems = []
    for plan in plans:
        max_epochs = config.data.sources[plan.name].max_epochs
        if plan.num_samples and plan.num_in_all > round(max_epochs * plan.samples_per_epoch):
            asked, size = plan.num_in_all * config.data.seq_length, plan.available_tokens
            problems.append(f"source {plan.name!r} has {size:,} tokens and is asked for {asked:,} "
                            f"({asked / max(size, 1):.2f} epochs), over its max_epochs of {max_epochs:g}")
    if problems:
        raise UserError("; ".join(problems) + ". Lower train.budget_tokens or the source's amount, or allow the "
                        "repetition with data.sources.<name>.max_epochs")
