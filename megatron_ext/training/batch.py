"""Micro-batches: samples as the tensors that a model takes, on this rank's device and part of the sequence.

Shapes: b = micro-batch, s = sequence, c = part of the sequence on this rank (s / cp).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from megatron.core import parallel_state
from torch import Tensor

from megatron_ext.config import DataConfig
from megatron_ext.data.dataset import Sample
from megatron_ext.model.layers import document_mask, positions_on_this_rank
from megatron_ext.training.parallel import device


@dataclass(frozen=True)
class Batch:
    """One micro-batch of this rank."""

    tokens: Tensor  # int64 [b, c]
    labels: Tensor  # int64 [b, c]
    mask: Tensor  # float32 [b, c], 0 where the prediction does not count
    source: Tensor  # int64 [b], index of the source in the blend
    position_ids: Tensor | None  # int64 [b, c]; None: 0 … s-1
    attention_mask: Tensor | None  # bool [b, 1, c, s], True = hidden; None: causal

    @classmethod
    def of(cls, samples: Sequence[Sample], data: DataConfig) -> Batch:
        """Stack samples; under context parallelism each rank keeps its part of every sequence."""
        tokens, labels, mask, documents = (
            torch.from_numpy(np.stack(column)).to(device()) for column in list(zip(*samples, strict=True))[:4])
        here = positions_on_this_rank(tokens.shape[1], parallel_state.get_context_parallel_group(),
                                      device())
        source = torch.tensor([sample.source for sample in samples], device=device())
        return cls(
            tokens[:, here].contiguous(), labels[:, here].contiguous(), mask[:, here].contiguous(), source,
            document_positions(documents)[:, here].contiguous() if data.reset_positions else None,
            document_mask(documents, here) if data.document_mask else None,
        )


def forward(model: torch.nn.Module, batch: Batch) -> Tensor:
    """Run this pipeline stage. Returns its output; the last stage's is the loss per token, nats `[b, c]`."""
    return model(batch.tokens, batch.position_ids, batch.attention_mask, labels=batch.labels)


def document_positions(documents: Tensor) -> Tensor:
    """Position of every token within its document, `[b, s]`; documents are numbered in order from 0."""
    places = torch.arange(documents.shape[1], device=documents.device).expand(documents.shape)
    starts_here = torch.ones_like(documents, dtype=torch.bool)
    starts_here[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return places - torch.where(starts_here, places, 0).cummax(dim=1).values
