"""Micro-batches: samples as the tensors that a model takes, on this rank's device and part of the sequence.

They are made on the host, by whoever has the time, and copied to the device without anybody waiting: from pinned memory
where there is a GPU, and only what the pipeline stage at hand reads.

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
from megatron.core.utils import get_attr_wrapped_model
from torch import Tensor

from megatron_ext.config import DataConfig, RunConfig
from megatron_ext.data.dataset import Sample
from megatron_ext.model.layers import document_mask, positions_on_this_rank
from megatron_ext.model.parallel import device, pinned, to_device


@dataclass(frozen=True)
class Batch:
    """One micro-batch of this rank on its device; what the pipeline stage does not read is None."""

    tokens: Tensor | None  # int64 [b, c]; packed [1, b·s]; of the first stage
    labels: Tensor | None  # int64 [b, c]; packed [1, b·s]; of the last stage, as the mask
    mask: Tensor | None  # float32 [b, c], 0 where the prediction does not count
    position_ids: Tensor | None  # int64 [b, c]; None: 0 … s-1
    attention_mask: Tensor | None  # bool [b, 1, c, s], True = hidden; None: causal
    packing: PackedSeqParams | None = None  # where the documents of a packed micro-batch begin


@dataclass(frozen=True)
class HostBatch:
    """One micro-batch of this rank on the host, for every stage: tensors as in Batch."""

    positions: Sequence[int]
    """Positions of the samples in the run `[b]`."""
    sources: list[int]
    """Index of each sample's source in the blend `[b]`."""
    tokens: Tensor
    labels: Tensor
    mask: Tensor
    documents: Tensor | None
    """Where attention or positions need them: the number of every token's document within its sample, int64 `[b, s]`;
    packed: where documents begin, int32 `[documents + 1]`."""
    data: DataConfig

    @classmethod
    def of(cls, positions: Sequence[int], samples: Sequence[Sample], data: DataConfig,
           packed: bool = False) -> HostBatch:
        """Stack samples, or pack them; under context parallelism each rank keeps its part of every sequence."""
        columns = (torch.from_numpy(np.stack(column)) for column in list(zip(*samples, strict=True))[:4])
        tokens, labels, mask, documents = columns
        sources = [sample.source for sample in samples]
        if packed:
            starts = _document_starts(documents)
            return cls(positions, sources, *map(pinned, (tokens.view(1, -1), labels.view(1, -1), mask, starts)), data)
        here = positions_on_this_rank(tokens.shape[1], parallel_state.get_context_parallel_group(), documents.device)
        rows = (pinned(column[:, here].contiguous()) for column in (tokens, labels, mask))
        apart = data.document_mask or data.reset_positions
        return cls(positions, sources, *rows, pinned(documents) if apart else None, data)

    def for_stage(self, model: torch.nn.Module) -> Batch:
        """Begin to copy what a pipeline stage, or chunk of it, reads: its kernels wait for that, the host does not."""
        is_first, is_last = (get_attr_wrapped_model(model, name) for name in ("pre_process", "post_process"))
        tokens = to_device(self.tokens) if is_first else None
        labels, mask = (to_device(self.labels), to_device(self.mask)) if is_last else (None, None)
        if self.documents is None:
            return Batch(tokens, labels, mask, None, None)
        documents = to_device(self.documents)
        if documents.dim() == 1:
            return Batch(tokens, labels, mask, None, None, _packing(documents, self.mask.shape[1]))
        here = positions_on_this_rank(documents.shape[1], parallel_state.get_context_parallel_group(), device())
        return Batch(
            tokens, labels, mask,
            document_positions(documents)[:, here].contiguous() if self.data.reset_positions else None,
            document_mask(documents, here) if self.data.document_mask else None,
        )


@dataclass(frozen=True)
class Report:
    """Losses of one micro-batch."""

    positions: Sequence[int]
    """Positions of its samples in the run `[b]`."""
    sources: Sequence[int]
    """Index of their sources in the blend `[b]`."""
    sums: Tensor
    """Nats of each sample and the tokens that they are over, float64 `[b, 2]`, on the device."""


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


def _document_starts(documents: Tensor) -> Tensor:
    """Where documents begin in samples laid end to end, and where the last ends: int32 `[documents + 1]`.

    Args:
        documents: the number of every token's document within its sample `[b, s]`.
    """
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    places = begins.flatten().nonzero()[:, 0]
    return torch.cat([places, torch.tensor([begins.numel()])]).int()


def _packing(cu_seqlens: Tensor, seq_length: int) -> PackedSeqParams:
    """The longest document is told as a whole sample: a limit is all that the kernels need of it, and one that does not
    change lets cuDNN keep its plan.
    """
    return PackedSeqParams(qkv_format="thd", cu_seqlens_q=cu_seqlens, cu_seqlens_kv=cu_seqlens,
                           max_seqlen_q=seq_length, max_seqlen_kv=seq_length)


def document_positions(documents: Tensor) -> Tensor:
    """Position of every token within its document, `[b, s]`; documents are numbered in order from 0."""
    places = torch.arange(documents.shape[1], device=documents.device).expand(documents.shape)
    starts_here = torch.ones_like(documents, dtype=torch.bool)
    starts_here[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return places - torch.where(starts_here, places, 0).cummax(dim=1).values
