"""Micro-batches: samples as the tensors that a model takes, on this rank's device and part of the sequence.

Documents of a sample that must not see each other are kept apart by a mask, or, under Transformer Engine, by packing:
all samples are laid end to end as one row, with the places at which documents begin. Its kernels then compute nothing
between documents, and positions begin anew in each, which changes nothing for rotary angles.

Shapes: b = micro-batch, s = sequence, c = part of the sequence on this rank (s / cp).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from megatron.core import parallel_state
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from megatron_ext.config import DataConfig, RunConfig
from megatron_ext.data.dataset import Sample
from megatron_ext.model.layers import document_mask, positions_on_this_rank
from megatron_ext.model.parallel import device


@dataclass(frozen=True)
class Batch:
    """One micro-batch of this rank."""

    tokens: Tensor  # int64 [b, c]; packed [1, b·s]
    labels: Tensor  # int64 [b, c]; packed [1, b·s]
    mask: Tensor  # float32 [b, c], 0 where the prediction does not count
    source: Tensor  # int64 [b], index of the source in the blend
    position_ids: Tensor | None  # int64 [b, c]; None: 0 … s-1
    attention_mask: Tensor | None  # bool [b, 1, c, s], True = hidden; None: causal
    packing: PackedSeqParams | None = None  # where the documents of a packed micro-batch begin

    @classmethod
    def of(cls, samples: Sequence[Sample], data: DataConfig, packed: bool = False) -> Batch:
        """Stack samples, or pack them; under context parallelism each rank keeps its part of every sequence."""
        *columns, documents = (np.stack(column) for column in list(zip(*samples, strict=True))[:4])
        tokens, labels, mask = (torch.from_numpy(column).to(device()) for column in columns)
        source = torch.tensor([sample.source for sample in samples], device=device())
        if packed:
            return cls(tokens.view(1, -1), labels.view(1, -1), mask, source, None, None, _packing(documents))
        numbers = torch.from_numpy(documents).to(device())
        here = positions_on_this_rank(tokens.shape[1], parallel_state.get_context_parallel_group(), device())
        return cls(
            tokens[:, here].contiguous(), labels[:, here].contiguous(), mask[:, here].contiguous(), source,
            document_positions(numbers)[:, here].contiguous() if data.reset_positions else None,
            document_mask(numbers, here) if data.document_mask else None,
        )


def forward(model: torch.nn.Module, batch: Batch) -> Tensor:
    """Run this pipeline stage. Returns its output; the last stage's is the loss per token, nats, of `labels`' shape."""
    return model(batch.tokens, batch.position_ids, batch.attention_mask, labels=batch.labels,
                 packed_seq_params=batch.packing)


def schedule_shape(config: RunConfig) -> dict[str, int]:
    """The arguments by which megatron-core's schedules know the hidden states `[s, b, h]` that stages exchange."""
    seq_length, micro_batch_size = config.data.seq_length, config.train.micro_batch_size
    if config.packs_documents:
        return {"seq_length": seq_length * micro_batch_size, "micro_batch_size": 1}
    return {"seq_length": seq_length, "micro_batch_size": micro_batch_size}


def _packing(documents: np.ndarray) -> PackedSeqParams:
    """Where documents begin in samples laid end to end, worked out on the host.

    The longest document is told as a whole sample: a limit is all that the kernels need of it, and one that does not
    change lets cuDNN keep its plan.

    Args:
        documents: the number of every token's document within its sample `[b, s]`.
    """
    begins = np.ones(documents.shape, dtype=bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    places = np.append(np.flatnonzero(begins), begins.size).astype(np.int32)
    cu_seqlens = torch.from_numpy(places).to(device())
    longest = documents.shape[1]
    return PackedSeqParams(qkv_format="thd", cu_seqlens_q=cu_seqlens, cu_seqlens_kv=cu_seqlens,
                           max_seqlen_q=longest, max_seqlen_kv=longest)


def document_positions(documents: Tensor) -> Tensor:
    """Position of every token within its document, `[b, s]`; documents are numbered in order from 0."""
    places = torch.arange(documents.shape[1], device=documents.device).expand(documents.shape)
    starts_here = torch.ones_like(documents, dtype=torch.bool)
    starts_here[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return places - torch.where(starts_here, places, 0).cummax(dim=1).values
