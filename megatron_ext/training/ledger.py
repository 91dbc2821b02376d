"""What a run has shown its model, its trunk included; and what a branch that leaves it must know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from megatron_ext.config import RunConfig
from megatron_ext.data.dataset import BlendedDataset
from megatron_ext.data.past import SourceRead
from megatron_ext.training.run_folder import skipped_until
from megatron_ext.training.trunk import Trunk, open_trunk


class Ledger:
    """The ledger of exposure of a run at any of its iterations."""

    def __init__(self, config: RunConfig, dataset: BlendedDataset, identity: Mapping[str, Any],
                 trunk: Trunk | None = None) -> None:
        """
        Args:
            identity: of the run.
            trunk: where the caller has opened it already.
        """
        self.dataset = dataset
        self._config = config
        self._contents = {name: source["path"] for name, source in identity["data"]["sources"].items()}
        self._trunk = trunk or (open_trunk(config.start) if config.start else None)

    def at(self, iteration: int) -> dict[str, Any]:
        """After so many iterations, the trunk's included: {iteration, sources, skipped_iterations, trunk}."""
        skipped = self._skipped(iteration)
        ledger = {"iteration": iteration, "sources": self._exposure(iteration)}
        return {**ledger, **({"skipped_iterations": skipped} if skipped else {}),
                **({"trunk": self._trunk.ledger} if self._trunk else {})}

    def what_was_read(self, iteration: int) -> dict[str, Any]:
        """What a branch must know: how far each source was read, and in what order."""
        plan, exposure = self.dataset.plan, self._exposure(iteration)
        seen = plan.samples_seen(iteration * self._config.train.global_batch_size)
        sources = {source.name: SourceRead(self._contents[source.name], source.order_name, source.seeds,
                                           seen[source.name], exposure[source.name])
                   for source in self.dataset.sources}
        return {"blend_from": plan.blend_from, "skipped_iterations": self._skipped(iteration),
                "sources": {name: vars(read) for name, read in {**sources, **self._left()}.items()}}

    def _exposure(self, iteration: int) -> dict[str, Any]:
        samples = self._config.train.global_batch_size
        passed_over = [((first - 1) * samples, last * samples) for first, last in self._own_skipped(iteration)]
        return {**self.dataset.exposure(iteration * samples, passed_over),
                **{name: {**read.exposure, "planned_tokens": read.exposure["seen_tokens"]}
                   for name, read in self._left().items()}}

    def _left(self) -> dict[str, SourceRead]:
        """Sources that the trunk alone has read; a name that means another source now is told apart."""
        mine = {source.name for source in self.dataset.sources}
        return {f"{name} (trunk)" if name in mine else name: read for name, read in self.dataset.plan.left.items()}

    def _skipped(self, iteration: int) -> list[list[int]]:
        return [*(self._trunk.skipped_iterations if self._trunk else []), *self._own_skipped(iteration)]

    def _own_skipped(self, iteration: int) -> list[list[int]]:
        """Those after the trunk."""
        behind = self._trunk.iteration if self._trunk else 0
        return [[max(first, behind + 1), last]
                for first, last in skipped_until(self._config.train.skip_iterations, iteration) if last > behind]
