"""Which documents a sample of a run shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_ext.config import RunConfig
from megatron_ext.data.blend import BlendPlan
from megatron_ext.data.dataset import BlendedDataset, PackedSource
from megatron_ext.data.documents import CHUNKS
from megatron_ext.data.inspection import Dataset, open_dataset, sequence_record
from megatron_ext.errors import UserError


def open_run_data(config: RunConfig, plan: BlendPlan) -> BlendedDataset:
    """The samples of a run, in its order."""
    return BlendedDataset(plan, [
        PackedSource(config.data.sources[planned.name].path / "train", planned.name, config.data.seq_length,
                     config.train.seed, separate_documents=config.data.document_mask, read=planned.read)
        for planned in plan.sources
    ])


def sample_passages(dataset: BlendedDataset, position: int) -> Iterator[dict[str, Any]]:
    """The stretches of documents that the sample at `position` of the run shows, in order.

    Keys: source, id, document_id, style and, of a rewrite, chunks (where the tokenized artifact tells them), sequence
    (index in the indexed dataset), start and num_tokens (within the document).
    """
    source, passages = dataset.passages(position)
    reader = next(packed.reader for packed in dataset.sources if packed.name == source)
    opened = _artifact_of(reader.prefix)
    for passage in passages:
        record = sequence_record(opened, passage.sequence) if opened else {}
        origin = {key: record[key] for key in ("id", "document_id", "style", CHUNKS) if record.get(key) is not None}
        yield {"source": source, **origin, "sequence": passage.sequence, "start": passage.start,
               "num_tokens": passage.num_tokens}


def iteration_positions(config: RunConfig, iteration: int) -> range:
    """Positions in the run of the samples in an iteration, 1 being the first.

    Raises UserError when the run has no such iteration.
    """
    if not 1 <= iteration <= config.train_iters:
        raise UserError(f"there is no iteration {iteration}; the run has 1 to {config.train_iters:,}")
    first = (iteration - 1) * config.train.global_batch_size
    return range(first, first + config.train.global_batch_size)


def describe_sample(dataset: BlendedDataset, position: int) -> str:
    """The same as a line."""
    parts = [f"{passage.get('id', 'sequence ' + str(passage['sequence']))} tokens {passage['start']}–"
             f"{passage['start'] + passage['num_tokens'] - 1}" for passage in sample_passages(dataset, position)]
    return f"  sample {position} of source {dataset.passages(position)[0]}: {'; '.join(parts)}"


def _artifact_of(prefix: Path) -> Dataset | None:
    """The tokenized artifact that an indexed dataset belongs to, when it says where its documents come from."""
    folder, split = prefix.parent, prefix.name
    return open_dataset(folder, split) if (folder / "sequences.parquet").exists() else None
