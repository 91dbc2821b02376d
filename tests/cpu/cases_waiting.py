"""What test_waiting.py runs under torchrun."""

from __future__ import annotations

import json
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.cpu.cases_training import runs
from tests.cpu.waiting import Tracker


@dataclass
class _Counted:
    """Of one run."""

    begins: list[tuple[Counter, int]] = field(default_factory=list)
    """Counts, and places counted, when each iteration began."""
    loops: list[Counter] = field(default_factory=list)
    """Counts of each iteration's micro-batch loop."""


def count_waits(base: dict, variants: dict[str, dict]) -> None:
    """Write, of each variant, what the second iteration counts and what its micro-batch loop does: a file a rank."""
    from megatron_ext.training import loop, step

    tracker = Tracker()
    counted: dict[str, _Counted] = {}
    train_step, get_schedule = loop.train_step, step.get_forward_backward_func

    def counted_step(state, *arguments):
        run = counted.setdefault(state.config.output.name, _Counted())
        if not run.begins:
            tracker.put_on_device([(*chunk.module.parameters(), *chunk.module.buffers()) for chunk in state.model])
            tracker.put_on_device([(buffer.param_data, buffer.grad_data) for chunk in state.model
                                   for buffer in chunk.buffers])
            tracker.put_on_device(state.optimizer.get_parameters())
        run.begins.append((tracker.counts.copy(), len(tracker.places)))
        return train_step(state, *arguments)

    def counted_schedule():
        def run(*arguments, **options):
            before = tracker.counts.copy()
            result = get_schedule()(*arguments, **options)
            list(counted.values())[-1].loops.append(tracker.counts - before)
            return result

        return run

    loop.train_step, step.get_forward_backward_func = counted_step, counted_schedule
    with tracker:
        runs(base, variants)
    told = {}
    for name, run in counted.items():
        (before, first), (after, last) = run.begins[1:3]
        told[name] = {"iteration": after - before, "loop": run.loops[1], "places": tracker.places[first:last]}
    Path(base["output"], f"counted-{os.environ['RANK']}.json").write_text(json.dumps(told))
