"""One iteration of training, from top to bottom.

Shapes: b = micro-batch, c = part of the sequence on this rank (s / cp), S = sources of the blend.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.optimizer import clip_grad_by_total_norm_fp32
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_ext.data.dataset import BlendedDataset, micro_batch_positions
from megatron_ext.model.parallel import device, sum_over_data_parallel
from megatron_ext.training.batch import Batch, forward, schedule_shape
from megatron_ext.training.guards import refuse_non_finite
from megatron_ext.training.state import TrainState


@dataclass(frozen=True)
class StepResult:
    """What one iteration tells."""

    loss: float
    """Mean over the predicted tokens of the global batch, nats."""
    loss_per_source: dict[str, float]
    """The same for each source that has a token in the batch."""
    grad_norm: float
    """Global norm before clipping."""
    lr: float
    """Learning rate of this update."""
    skipped: bool
    """The gradient was a spike, and the weights stayed as they were."""


def train_step(state: TrainState, dataset: BlendedDataset, iteration: int) -> StepResult:
    """Forward, backward, reduce, clip, update: one global batch.

    Raises NonFiniteError before the update, so that the weights stay those of the last good iteration.
    """
    for chunk in state.model:
        chunk.zero_grad_buffer()
    state.optimizer.zero_grad()

    with state.clock.measure("forward_backward"):
        batches = [training_batches(state, dataset, iteration) for _ in state.model]
        reports = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=batches if len(batches) > 1 else batches[0],
            model=state.model if len(state.model) > 1 else state.model[0],
            num_microbatches=state.num_micro_batches,
            forward_only=False,
            **schedule_shape(state.config),
        )
    sums = sum_losses(reports, num_sources=len(dataset.sources))  # [S, 2]
    loss = (sums[:, 0].sum() / sums[:, 1].sum()).item()
    refuse_non_finite("loss", loss, reports, dataset, iteration)

    # Before the update, so that the first iteration of a warm-up already moves the weights and the last one ends the
    # decay.
    state.scheduler.step(increment=state.config.train.global_batch_size)
    with state.clock.measure("optimizer"):
        state.optimizer.prepare_grads()
        grad_norm = float(state.optimizer.get_grad_norm())
        refuse_non_finite("gradient norm", grad_norm, reports, dataset, iteration)
        skipped = state.spikes.is_spike(grad_norm)
        if not skipped:
            clip_and_update(state.optimizer, grad_norm)
    state.iteration = iteration + 1
    return StepResult(loss, _mean_per_source(sums, dataset), grad_norm, state.optimizer.param_groups[0]["lr"], skipped)


def pass_over(state: TrainState) -> None:
    """Leave an iteration out: its batch is not read, its place in the schedule passes."""
    state.scheduler.step(increment=state.config.train.global_batch_size)
    state.iteration += 1


def training_batches(state: TrainState, dataset: BlendedDataset, iteration: int) -> Iterator[tuple[range, Batch]]:
    """This rank's micro-batches of an iteration, with the positions of their samples in the run.

    Every rank reads its own samples from the memory-mapped data: cheaper than broadcasting them.
    """
    config = state.config
    for micro_batch in range(state.num_micro_batches):
        with state.clock.measure("data", wait=False):
            positions = micro_batch_positions(
                iteration, micro_batch, global_batch_size=config.train.global_batch_size,
                micro_batch_size=config.train.micro_batch_size, dp_rank=state.dp_rank, dp_size=state.dp_size)
            batch = Batch.of([dataset[position] for position in positions], config.data, config.packs_documents)
        yield positions, batch


def forward_step(batches: Iterator[tuple[range, Batch]], model: torch.nn.Module) -> tuple[Tensor, object]:
    """Run one micro-batch through this stage; megatron-core's schedules call it.

    Returns the stage's output (the last stage's: loss per token `[b, c]`, packed `[1, b·s]`) and the function that sums
    it.
    """
    positions, batch = next(batches)

    def sum_loss(loss: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Summed loss, number of tokens it is over, and for the report position, source, both sums `[b, 4]`."""
        nats = (loss.float().view_as(batch.mask) * batch.mask).sum(1)  # [b]
        tokens = batch.mask.sum(1)
        places = torch.tensor(positions, dtype=torch.float64, device=nats.device)
        report = torch.stack([places, batch.source.double(), nats.detach().double(), tokens.double()], dim=1)
        return nats.sum(), tokens.sum().int(), report

    return forward(model, batch), sum_loss


def clip_and_update(optimizer: MegatronOptimizer, grad_norm: float) -> None:
    """Scale the gradients down to the norm allowed, then let AdamW move the weights.

    What megatron-core's `optimizer.step` does after it has the norm.
    """
    if optimizer.config.clip_grad > 0:
        clip_grad_by_total_norm_fp32(optimizer.get_parameters(), optimizer.config.clip_grad, grad_norm)
    optimizer.step_with_ready_grads()


def sum_losses(reports: list[Tensor], num_sources: int) -> Tensor:
    """Sums over the global batch for each source: nats and predicted tokens, float64 `[S, 2]`, on every rank."""
    sums = torch.zeros(num_sources, 2, dtype=torch.float64, device=device())
    for report in reports:  # [b, 4]; there are none before the last stage
        sums.index_add_(0, report[:, 1].long(), report[:, 2:])
    return sum_over_data_parallel(sums)


def _mean_per_source(sums: Tensor, dataset: BlendedDataset) -> dict[str, float]:
    return {source.name: (nats / tokens).item()
            for source, (nats, tokens) in zip(dataset.sources, sums, strict=True) if tokens}
