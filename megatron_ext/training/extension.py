"""A run that goes on with a larger budget, where it is what it would be, had the budget been so from the start.

What is done must be what the larger budget would have done: the same samples at the same learning rates. Blends by
shares and schedules before their decay do not depend on the budget; a cosine, a warm-up that is a fraction of the run,
and amounts in tokens or epochs, which are spread over it, do.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from megatron_ext.config import RunConfig, ScheduleConfig
from megatron_ext.data.blend import is_proportional, order_of_rounded_shares
from megatron_ext.training.preflight import source_sizes
from megatron_ext.training.trunk import plan_run

GROWS = ("train.budget_tokens", "schedule.warmup_fraction", "schedule.warmup_tokens", "schedule.warmup_iters")
"""What may change: the budget, and the unit of a warm-up that stays as long as it was."""


def extends(config: RunConfig, identity: Mapping[str, Any]) -> bool:
    """Whether a run asks for more iterations than what is there was made for."""
    return config.train_iters > config.iterations_of(identity["train"]["budget_tokens"])


def extension_problems(config: RunConfig, identity: Mapping[str, Any], iteration: int) -> list[str]:
    """Why a run that has done so many iterations is not what the larger budget would have made (none: it is).

    Args:
        identity: that it was begun with.
    """
    train = config.train.model_copy(update={"budget_tokens": identity["train"]["budget_tokens"]})
    before = config.model_copy(update={"train": train, "schedule": ScheduleConfig(**identity["schedule"])})
    batch, problems = config.train.global_batch_size, []
    if before.warmup_samples != config.warmup_samples:
        tokens = before.warmup_samples * config.data.seq_length
        problems.append(f"the warm-up was {before.warmup_samples / batch:g} iterations and would be "
                        f"{config.warmup_samples / batch:g}: keep it with schedule.warmup_tokens={tokens}")
    if iteration * batch > before.decay_start:
        problems.append(f"the {config.schedule.style} decay towards the earlier end began after iteration "
                        f"{before.decay_start / batch:g}")
    if not _same_samples(before, config, iteration):
        problems.append("amounts in tokens or epochs are spread over the budget: give shares (fraction, fill)")
    return problems


def older_order_problem(config: RunConfig, state: Mapping[str, Any]) -> str | None:
    """What is wrong with going on from a checkpoint of a version that dealt out rounded shares (None: nothing)."""
    if "data" in state or len(config.data.sources) == 1 or not is_proportional(config):
        return None
    plan = plan_run(config, sizes := source_sizes(config))
    done = state["iteration"] * config.train.global_batch_size
    if np.array_equal(plan.order[:done], order_of_rounded_shares(config, sizes)[:done]):
        return None
    return "it was begun by an older version, which dealt out its sources in another order: end it with that version"


def _same_samples(before: RunConfig, config: RunConfig, iteration: int) -> bool:
    sizes = source_sizes(config)
    plans = plan_run(before, sizes), plan_run(config, sizes)
    first, second = (plan.order[:iteration * config.train.global_batch_size - plan.start] for plan in plans)
    return np.array_equal(first, second)
