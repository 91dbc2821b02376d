"""What ends a run that goes wrong, or lets it pass over a bad batch."""

from __future__ import annotations

import faulthandler
import math
import statistics
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

from megatron_ext.config import GuardConfig
from megatron_ext.data.dataset import BlendedDataset
from megatron_ext.data.provenance import describe_sample
from megatron_ext.errors import UserError
from megatron_ext.training.batch import Report

_MOST_SAMPLES_NAMED = 8


class NonFiniteError(UserError):
    """A loss or gradient is NaN or infinite; the weights were not updated."""


class SpikeGuard:
    """Finds iterations whose gradient norm is far above the recent median; its memory is part of a checkpoint."""

    def __init__(self, config: GuardConfig) -> None:
        self._config = config
        self.norms: deque[float] = deque(maxlen=config.spike_window_iters)
        self.num_skipped_in_a_row = 0

    def is_spike(self, grad_norm: float) -> bool:
        """Whether this iteration's update is to be left out; remembers the norm if not.

        Raises UserError after too many in a row: then it is not a bad batch but a run that has diverged.
        """
        factor = self._config.spike_factor
        if factor is None:
            return False
        if len(self.norms) == self.norms.maxlen and grad_norm > factor * statistics.median(self.norms):
            self.num_skipped_in_a_row += 1
            if self.num_skipped_in_a_row > self._config.max_skipped_in_a_row:
                raise UserError(
                    f"{self.num_skipped_in_a_row} iterations in a row had a gradient norm (last {grad_norm:.3g}) above "
                    f"{factor:g} times the median of the last {len(self.norms)} updates "
                    f"({statistics.median(self.norms):.3g}): the run has diverged. Lower optimizer.lr, lengthen the "
                    "warm-up, or raise guard.spike_factor")
            return True
        self.num_skipped_in_a_row = 0
        self.norms.append(grad_norm)
        return False

    def state_dict(self) -> dict[str, object]:
        """What a checkpoint keeps."""
        return {"norms": list(self.norms), "num_skipped_in_a_row": self.num_skipped_in_a_row}

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on where the checkpoint stood."""
        self.norms.clear()
        self.norms.extend(state["norms"])
        self.num_skipped_in_a_row = state["num_skipped_in_a_row"]


class Watchdog:
    """Ends a rank that makes no progress, with the stack of all its threads in `hang-rank<r>.txt` of the run folder.

    A collective that waits for a lost peer can hold whole nodes for hours; the stacks tell who waited for what. It
    works below Python, so it fires while a C call blocks.
    """

    def __init__(self, minutes: float | None, run_folder: Path) -> None:
        self._seconds = None if minutes is None else 60 * minutes
        path = run_folder / f"hang-rank{dist.get_rank()}.txt"
        self._file = None if minutes is None else open(path, "w", encoding="utf-8")  # noqa: SIM115 (as long as the run)
        self._path = path
        if minutes is not None and dist.get_rank() == 0:  # when it fires nothing can be printed any more
            print(f"hang guard: a rank without progress for {minutes:g} minutes writes its stacks to "
                  f"{run_folder}/hang-rank<r>.txt and ends", flush=True)
        self.tell_alive()

    def tell_alive(self) -> None:
        """Progress was made: wait anew."""
        if self._file is not None:
            faulthandler.dump_traceback_later(self._seconds, exit=True, file=self._file)

    def close(self) -> None:
        """Stop watching; nothing hung, so no file stays."""
        if self._file is not None:
            faulthandler.cancel_dump_traceback_later()
            self._file.close()
            self._path.unlink(missing_ok=True)


def refuse_non_finite(what: str, value: float, reports: Sequence[Report], dataset: BlendedDataset,
                      iteration: int) -> None:
    """Raise NonFiniteError that names the documents of the samples at fault; all ranks call it with the same value.

    Args:
        reports: of this rank's micro-batches.
    """
    if math.isfinite(value):
        return
    of_this_rank = [(place, nats) for report in reports
                    for place, (nats, _) in zip(report.positions, report.sums.tolist(), strict=True)]
    of_all: list[list[tuple[int, float]]] = [[] for _ in range(dist.get_world_size())]
    dist.all_gather_object(of_all, of_this_rank)
    rows = [row for rank_rows in of_all for row in rank_rows]
    # Where every loss is finite and a gradient is not, any sample of the batch can be the cause.
    culprits = sorted({place for place, nats in rows if not math.isfinite(nats)} or {place for place, _ in rows})
    named = "\n".join(describe_sample(dataset, place) for place in culprits[:_MOST_SAMPLES_NAMED])
    more = f"\n… and {len(culprits) - _MOST_SAMPLES_NAMED} more samples" if len(culprits) > _MOST_SAMPLES_NAMED else ""
    raise NonFiniteError(f"{what} {value} in iteration {iteration + 1}: stopped before the update. Samples concerned:\n"
                         f"{named}{more}")
