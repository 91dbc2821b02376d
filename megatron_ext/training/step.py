"""One iteration of training, from top to bottom.

Shapes: b = micro-batch, c = part of the sequence on this rank (s / cp), S = sources of the blend.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from megatron.core.optimizer import MegatronOptimizer
from megatron.core.optimizer.optimizer import clip_grad_by_total_norm_fp32
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_ext.model.parallel import any_rank, device, pinned, sum_over_data_parallel, to_device, to_host
from megatron_ext.training.batch import HostBatch, Report, forward, schedule_shape
from megatron_ext.training.guards import refuse_non_finite
from megatron_ext.training.reader import BatchReader
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


def train_step(state: TrainState, reader: BatchReader, is_asked: Callable[[], bool]) -> tuple[StepResult, bool]:
    """Forward, backward, reduce, clip, update: one global batch. The host waits for the device once, for the norm.

    Raises NonFiniteError before the update, so that the weights stay those of the last good iteration.

    Args:
        is_asked: whether this rank was asked to stop.

    Returns:
        What the iteration tells, and whether any rank was asked to stop.
    """
    iteration, sources = state.iteration, reader.dataset.sources
    for chunk in state.model:
        chunk.zero_grad_buffer()
    state.optimizer.zero_grad()

    batches = reader.micro_batches(iteration)
    with state.clock.measure("forward_backward"):
        reports = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=[iter(batches) for _ in state.model] if len(state.model) > 1 else iter(batches),
            model=state.model if len(state.model) > 1 else state.model[0],
            num_microbatches=state.num_micro_batches,
            forward_only=False,
            **schedule_shape(state.config),
        )
    sums = to_host(sum_losses(reports, num_sources=len(sources)))  # [S, 2]
    asked = to_host(any_rank(is_asked()))

    # Before the update, so that the first iteration of a warm-up already moves the weights and the last one ends the
    # decay.
    state.scheduler.step(increment=state.config.train.global_batch_size)
    with state.clock.measure("optimizer"):
        state.optimizer.prepare_grads()
        grad_norm = float(state.optimizer.get_grad_norm())  # the host waits here; what went to the host is there then
        loss = (sums[:, 0].sum() / sums[:, 1].sum()).item()
        refuse_non_finite("loss", loss, reports, reader.dataset, iteration)
        refuse_non_finite("gradient norm", grad_norm, reports, reader.dataset, iteration)
        skipped = state.spikes.is_spike(grad_norm)
        if not skipped:
            clip_and_update(state.optimizer, grad_norm)
    state.iteration = iteration + 1
    means = {source.name: (nats / tokens).item()
             for source, (nats, tokens) in zip(sources, sums, strict=True) if tokens}
    return StepResult(loss, means, grad_norm, state.optimizer.param_groups[0]["lr"], skipped), bool(asked)


def pass_over(state: TrainState) -> None:
    """Leave an iteration out: its batch is not read, its place in the schedule passes."""
    state.scheduler.step(increment=state.config.train.global_batch_size)
    state.iteration += 1


def forward_step(batches: Iterator[HostBatch], model: torch.nn.Module) -> tuple[Tensor, object]:
    """Run one micro-batch through this stage; megatron-core's schedules call it.

    Returns the stage's output (the last stage's: loss per token `[b, c]`, packed `[1, b·s]`) and the function that sums
    it.
    """
    samples = next(batches)
    batch = samples.for_stage(model)

    def sum_loss(loss: Tensor) -> tuple[Tensor, Tensor, Report]:
        """Summed loss, number of tokens that it is over, and both by sample."""
        nats = (loss.float().view_as(batch.mask) * batch.mask).sum(1)  # [b]
        tokens = batch.mask.sum(1)
        sums = torch.stack([nats.detach().double(), tokens.double()], dim=1)
        return nats.sum(), tokens.sum().int(), Report(samples.positions, samples.sources, sums)

    return forward(model, batch), sum_loss


def clip_and_update(optimizer: MegatronOptimizer, grad_norm: float) -> None:
    """Scale the gradients down to the norm allowed, then let AdamW move the weights.

    What megatron-core's `optimizer.step` does after it has the norm.
    """
    if optimizer.config.clip_grad > 0:
        clip_grad_by_total_norm_fp32(optimizer.get_parameters(), optimizer.config.clip_grad, grad_norm)
    optimizer.step_with_ready_grads()


def sum_losses(reports: Sequence[Report], num_sources: int) -> Tensor:
    """Sums over the global batch for each source: nats and predicted tokens, float64 `[S, 2]`, on every rank."""
    sums = torch.zeros(num_sources, 2, dtype=torch.float64, device=device())
    if reports:  # there are none before the last stage
        sources = pinned(torch.tensor([source for report in reports for source in report.sources]))
        sums.index_add_(0, to_device(sources), torch.cat([report.sums for report in reports]))
    return sum_over_data_parallel(sums)
