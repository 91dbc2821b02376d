"""Held-out loss of each source, in nats per token and in bits per byte.

Bits per byte do not depend on how text falls into tokens, so rewritten and original text compare. Tokens that stand for
no text (the end-of-document token) count for nats per token only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

import numpy as np
import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_ext.artifacts import Artifact
from megatron_ext.config import RunConfig
from megatron_ext.data.dataset import PackedSource, Sample, micro_batch_positions
from megatron_ext.training.batch import Batch, forward, schedule_shape
from megatron_ext.training.parallel import device, sum_over_data_parallel


@dataclass(frozen=True)
class SourceLoss:
    """Held-out loss of one source."""

    nats_per_token: float
    bits_per_byte: float
    num_tokens: int
    """Predicted tokens that the loss is a mean of."""


class Measurable(Protocol):
    """A model and where this rank stands in its layout: a training run's state, or a model that was loaded."""

    config: RunConfig
    model: Sequence[torch.nn.Module]
    dp_rank: int
    dp_size: int

    def gather_weights(self) -> None:
        """Make the weights whole on every rank."""


def validate(state: Measurable) -> dict[str, dict[str, float]]:
    """Loss of every validation source at the present weights; the same samples each time. All ranks call it.

    Documents are packed and masked as in training.
    """
    state.gather_weights()
    for chunk in state.model:
        chunk.eval()
    losses = {}
    with torch.no_grad():
        for name, folder in state.config.validation.sources.items():
            artifact = Artifact.open(folder, kind="tokenized")
            if artifact.counts["valid"]["tokens"] > 1:  # one token predicts nothing
                losses[name] = asdict(_validate_source(state, name, artifact))
    for chunk in state.model:
        chunk.train()
    return losses


def _validate_source(state: Measurable, name: str, artifact: Artifact) -> SourceLoss:
    seq_length = state.config.data.seq_length
    source = PackedSource(artifact.path / "valid", name, seq_length, seed=0, shuffle=False,
                          separate_documents=state.config.data.document_mask)
    token_bytes = torch.from_numpy(np.load(artifact.path / "token_bytes.npy")).to(device())
    wanted = -(-state.config.validation.max_tokens_per_source // seq_length)
    num_samples = min(source.samples_per_epoch, wanted)
    micro_batch_size = state.config.train.micro_batch_size
    num_micro_batches = -(-num_samples // (micro_batch_size * state.dp_size))
    if len(state.model) > 1:  # the interleaved schedule takes as many at a time as there are stages
        stages = state.config.parallel.pipeline_model_parallel_size
        num_micro_batches = -(-num_micro_batches // stages) * stages

    def batches() -> Iterator[Batch]:
        for micro_batch in range(num_micro_batches):
            positions = micro_batch_positions(0, micro_batch, global_batch_size=0, micro_batch_size=micro_batch_size,
                                              dp_rank=state.dp_rank, dp_size=state.dp_size)
            yield Batch.of([_read(source, position, num_samples) for position in positions], state.config.data,
                           state.config.packs_documents)

    def forward_step(batches: Iterator[Batch], model: torch.nn.Module) -> tuple[Tensor, object]:
        batch = next(batches)
        return forward(model, batch), lambda loss: (loss.sum(), _sum_losses(loss, batch, token_bytes))

    outputs = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=[batches() for _ in state.model] if len(state.model) > 1 else batches(),
        model=state.model if len(state.model) > 1 else state.model[0],
        num_microbatches=num_micro_batches,
        forward_only=True,
        **schedule_shape(state.config),
    )
    sums = sum_over_data_parallel(sum(outputs, start=torch.zeros(4, dtype=torch.float64, device=device())))
    nats, tokens, text_nats, text_bytes = sums.tolist()
    return SourceLoss(nats / tokens, text_nats / math.log(2) / text_bytes if text_bytes else math.nan, int(tokens))


def _read(source: PackedSource, position: int, num_samples: int) -> Sample:
    """A sample; past the end the last one again, with nothing counted."""
    sample = source.read(min(position, num_samples - 1))
    return sample if position < num_samples else sample._replace(mask=np.zeros_like(sample.mask))


def _sum_losses(loss: Tensor, batch: Batch, token_bytes: Tensor) -> Tensor:
    """Nats and tokens of all predictions; nats and bytes of those that stand for text. float64 `[4]`."""
    mask = batch.mask.double()
    nats = loss.double().view_as(mask) * mask
    num_bytes = token_bytes[batch.labels].view_as(mask) * mask
    is_text = num_bytes > 0
    return torch.stack([nats.sum(), mask.sum(), (nats * is_text).sum(), num_bytes.sum()])
