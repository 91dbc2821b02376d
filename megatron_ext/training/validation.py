"""Held-out loss of each source, document by document: in nats per token and in bits per byte.

Every document is measured by itself and whole (`megatron_ext.data.windows`), so that its loss depends on no neighbour
and on no layout. Bits per byte do not depend on how text falls into tokens, so rewritten and original text compare.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_ext.config import RunConfig
from megatron_ext.data.windows import (
    Document,
    Window,
    held_out_documents,
    padded_length,
    read_window,
    windows_of,
)
from megatron_ext.model.parallel import device, sum_over_data_parallel
from megatron_ext.training.batch import HostBatch, forward

_MULTIPLE = 32  # tokens: the shortest sample


@dataclass(frozen=True)
class SourceLoss:
    """Held-out loss of one source: sums over all its documents."""

    nats_per_token: float
    bits_per_byte: float
    num_tokens: int
    """Predicted tokens that the loss is a mean of."""


@dataclass(frozen=True)
class DocumentLoss:
    """Held-out loss of one document."""

    source: str
    document_id: str
    cluster: str
    """See megatron_ext.data.windows.Document."""
    nats: float
    bytes: int
    tokens: int


class Measurable(Protocol):
    """A model and where this rank stands in its layout: a training run's state, or a model that was loaded."""

    config: RunConfig
    model: Sequence[torch.nn.Module]
    dp_rank: int
    dp_size: int

    def gather_weights(self) -> None:
        """Make the weights whole on every rank."""


def validate(state: Measurable) -> dict[str, dict[str, float]]:
    """Loss of every validation source at the present weights; the same documents each time. All ranks call it."""
    return source_losses(document_losses(state))


def source_losses(documents: Sequence[DocumentLoss]) -> dict[str, dict[str, Any]]:
    """Losses of the sources from those of their documents, by name."""
    losses = {}
    for name in dict.fromkeys(document.source for document in documents):
        own = [document for document in documents if document.source == name]
        nats, tokens, num_bytes = (math.fsum(getattr(one, key) for one in own) for key in ("nats", "tokens", "bytes"))
        losses[name] = asdict(SourceLoss(nats / tokens, nats / math.log(2) / num_bytes, int(tokens)))
    return losses


def document_losses(state: Measurable, stride: int | None = None) -> list[DocumentLoss]:
    """Loss of every held-out document of every source at the present weights. All ranks call it and get the same.

    Args:
        stride: tokens between two windows of a document that is longer than a sample; None: half a sample.
    """
    state.gather_weights()
    for chunk in state.model:
        chunk.eval()
    with torch.no_grad():
        losses = [loss for name, folder in state.config.validation.sources.items()
                  for loss in _measure_source(state, name, folder, stride)]
    for chunk in state.model:
        chunk.train()
    return losses


def _measure_source(state: Measurable, name: str, folder: Path, stride: int | None) -> list[DocumentLoss]:
    documents = held_out_documents(folder, state.config.validation.max_tokens_per_source)
    seq_length = state.config.data.seq_length
    windows = windows_of(documents, seq_length, stride or max(1, seq_length // 2))
    nats = np.zeros(len(documents))
    by_length: dict[int, list[Window]] = {}
    for window in windows:
        by_length.setdefault(padded_length(window, seq_length, _multiple_of(state.config)), []).append(window)
    for length, alike in sorted(by_length.items()):
        np.add.at(nats, [window.document for window in alike], _measure_windows(state, documents, alike, length))
    return [DocumentLoss(name, one.id, one.cluster, float(loss), one.num_bytes, one.num_tokens)
            for one, loss in zip(documents, nats, strict=True)]


def _multiple_of(config: RunConfig) -> int:
    """What the length of a sample must be a multiple of under this layout."""
    parallel = config.parallel
    return math.lcm(_MULTIPLE, 2 * parallel.context_parallel_size * parallel.tensor_model_parallel_size)


def _measure_windows(state: Measurable, documents: Sequence[Document], windows: Sequence[Window],
                     length: int) -> np.ndarray:
    """Nats of what each window predicts, float64 `[windows]`; all samples have `length` tokens."""
    batch_size = state.config.train.micro_batch_size
    data = state.config.data.model_copy(update={"document_mask": False, "reset_positions": False})
    micro_batches = list(_numbers_of_this_rank(state, len(windows)))

    def batches() -> Iterator[HostBatch]:
        for numbers in micro_batches:
            samples = [read_window(windows[max(number, 0)], documents, length) for number in numbers]
            yield HostBatch.of(numbers, samples, data)

    def forward_step(batches: Iterator[HostBatch], model: torch.nn.Module) -> tuple[Tensor, object]:
        samples = next(batches)
        batch = samples.for_stage(model)
        return forward(model, batch), lambda loss: (
            loss.sum(), _placed(loss, batch.mask, samples.positions, len(windows)))

    outputs = get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=[batches() for _ in state.model] if len(state.model) > 1 else batches(),
        model=state.model if len(state.model) > 1 else state.model[0],
        num_microbatches=len(micro_batches),
        forward_only=True,
        seq_length=length,
        micro_batch_size=batch_size,
    )
    sums = sum(outputs, start=torch.zeros(len(windows), dtype=torch.float64, device=device()))
    return sum_over_data_parallel(sums).cpu().numpy()


def _numbers_of_this_rank(state: Measurable, num_windows: int) -> Iterator[list[int]]:
    """Numbers of the windows in each micro-batch of this rank; -1 fills up, for ranks have equally many."""
    batch_size = state.config.train.micro_batch_size
    num_micro_batches = -(-num_windows // (batch_size * state.dp_size))
    if len(state.model) > 1:  # the interleaved schedule takes as many at a time as there are stages
        stages = state.config.parallel.pipeline_model_parallel_size
        num_micro_batches = -(-num_micro_batches // stages) * stages
    for micro_batch in range(num_micro_batches):
        first = (micro_batch * state.dp_size + state.dp_rank) * batch_size
        yield [number if number < num_windows else -1 for number in range(first, first + batch_size)]


def _placed(loss: Tensor, mask: Tensor, numbers: Sequence[int], num_windows: int) -> Tensor:
    """Nats of each sample of a micro-batch at its number, float64 `[windows]`; -1 counts nowhere."""
    sums = torch.zeros(num_windows, dtype=torch.float64, device=loss.device)
    nats = (loss.double().view_as(mask) * mask).sum(dim=1)
    for number, value in zip(numbers, nats, strict=True):
        if number >= 0:
            sums[number] = value
    return sums
