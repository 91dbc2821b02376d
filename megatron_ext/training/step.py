"""One iteration of training, from top to bottom.

Shapes: b = micro-batch, s = sequence, S = sources of the blend.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_ext.data.dataset import BlendedDataset, micro_batch_positions
from megatron_ext.training.parallel import device, sum_over_data_parallel
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


class NonFiniteLossError(RuntimeError):
    """The loss of an iteration is NaN or infinite; the weights were not updated."""


def train_step(state: TrainState, dataset: BlendedDataset, iteration: int) -> StepResult:
    """Forward, backward, reduce, clip, update: one global batch.

    Raises NonFiniteLossError before the update, so that the weights stay those of the last good iteration.
    """
    for chunk in state.model:
        chunk.zero_grad_buffer()
    state.optimizer.zero_grad()

    batches = [training_batches(state, dataset, iteration) for _ in state.model]
    outputs = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=batches if len(batches) > 1 else batches[0],
        model=state.model if len(state.model) > 1 else state.model[0],
        num_microbatches=state.num_micro_batches,
        seq_length=state.config.data.seq_length,
        micro_batch_size=state.config.train.micro_batch_size,
        forward_only=False,
    )
    sums = sum_losses(outputs, num_sources=len(dataset.sources))  # [S, 2]
    loss = (sums[:, 0].sum() / sums[:, 1].sum()).item()
    if not math.isfinite(loss):
        raise NonFiniteLossError(f"loss {loss} in iteration {iteration}: stopped before the update")

    # Before the update, so that the first iteration of a warm-up already moves the weights and the last one ends the
    # decay.
    state.scheduler.step(increment=state.config.train.global_batch_size)
    _, grad_norm, _ = state.optimizer.step()
    state.iteration = iteration + 1
    return StepResult(loss, _mean_per_source(sums, dataset), float(grad_norm), state.optimizer.param_groups[0]["lr"])


def training_batches(state: TrainState, dataset: BlendedDataset, iteration: int) -> Iterator[dict[str, Tensor]]:
    """This rank's micro-batches of an iteration: tokens, labels, mask `[b, s]` and source `[b]`.

    Every rank reads its own samples from the memory-mapped data: cheaper than broadcasting them.
    """
    for micro_batch in range(state.num_micro_batches):
        samples = [dataset[position] for position in micro_batch_positions(
            iteration, micro_batch, global_batch_size=state.config.train.global_batch_size,
            micro_batch_size=state.config.train.micro_batch_size, dp_rank=state.dp_rank, dp_size=state.dp_size)]
        yield {
            "tokens": torch.stack([torch.from_numpy(sample.tokens) for sample in samples]).to(device()),
            "labels": torch.stack([torch.from_numpy(sample.labels) for sample in samples]).to(device()),
            "mask": torch.stack([torch.from_numpy(sample.mask) for sample in samples]).to(device()),
            "source": torch.tensor([sample.source for sample in samples], device=device()),
        }


def forward_step(batches: Iterator[dict[str, Tensor]], model: torch.nn.Module) -> tuple[Tensor, object]:
    """Run one micro-batch through this stage; megatron-core's schedules call it.

    Returns the stage's output (the last stage's: loss per token `[b, s]`) and the function that sums it.
    """
    batch = next(batches)
    output = model(batch["tokens"], position_ids(batch["tokens"]), None, labels=batch["labels"])

    def sum_loss(loss: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Summed loss, number of tokens it is over, and both per sample for the report `[b, 3]`."""
        nats = (loss.float() * batch["mask"]).sum(1)  # [b]
        tokens = batch["mask"].sum(1)
        report = torch.stack([batch["source"].double(), nats.detach().double(), tokens.double()], dim=1)
        return nats.sum(), tokens.sum().int(), report

    return output, sum_loss


def position_ids(tokens: Tensor) -> Tensor:
    """0 … s-1 for every row, `[b, s]`."""
    return torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape).contiguous()


def sum_losses(outputs: list[Tensor], num_sources: int) -> Tensor:
    """Sums over the global batch for each source: nats and predicted tokens, float64 `[S, 2]`, on every rank."""
    sums = torch.zeros(num_sources, 2, dtype=torch.float64, device=device())
    for report in outputs:  # [b, 3]; there are none before the last stage
        sums.index_add_(0, report[:, 0].long(), report[:, 1:])
    return sum_over_data_parallel(sums)


def _mean_per_source(sums: Tensor, dataset: BlendedDataset) -> dict[str, float]:
    return {source.name: (nats / tokens).item()
            for source, (nats, tokens) in zip(dataset.sources, sums, strict=True) if tokens}
