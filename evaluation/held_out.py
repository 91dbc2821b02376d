"""Held-out texts as models were measured on them, matched document by document.

The value of a text is the mean over its clusters of their bits a byte, so that each document counts alike; a document,
its rewrites and exact copies, under whatever id, are one cluster.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.contrasts import MeasuredMeans
from evaluation.measures import BITS_PER_BYTE
from evaluation.statistics import Model
from megatron_ext.artifacts import Artifact
from megatron_ext.errors import UserError

DOCUMENTS = "documents.jsonl"
_SAME = ("seq_length", "stride", "dtype", "max_tokens_per_source")
_OWN = ("nats",)  # of a document: what a model decides


@dataclass(frozen=True)
class HeldOutText(MeasuredMeans):
    """One text as all models were measured on it."""

    num_documents: int


@dataclass(frozen=True)
class Measurement:
    """One model's held-out artifact."""

    name: str
    """Condition and number of the model in it, for messages."""
    model: Model
    settings: dict[str, Any]
    documents: dict[str, list[dict[str, Any]]]
    """Source -> rows of documents.jsonl, in order."""


def load_measurements(folders: Mapping[str, Sequence[Path]], given: Sequence[str]) -> list[Measurement]:
    """Read the measurements of each condition, one a seed; conditions in `given` were not trained.

    Raises UserError when two of them were not made in the same way, of the same documents.
    """
    measured = [_load(condition, position, folder, condition not in given)
                for condition, places in folders.items() for position, folder in enumerate(places)]
    problems = [problem for other in measured[1:] for problem in _mismatches(measured[0], other)]
    if problems:
        raise UserError(f"these held-out losses cannot be compared: {'; '.join(problems[:6])}. Measure all models with "
                        "the same settings on the same documents")
    return measured


def without(measured: Measurement, documents: set[tuple[str, str]]) -> Measurement:
    """The measurement without some documents, (source, id). Raises UserError when a text is left without any."""
    left = {source: [row for row in rows if (source, row["document_id"]) not in documents]
            for source, rows in measured.documents.items()}
    emptied = [source for source, rows in left.items() if not rows]
    if emptied:
        raise UserError(f"training text holds every held-out document of {', '.join(emptied)} in part: nothing is left "
                        "when they are removed; hold out other text, or keep them")
    return replace(measured, documents=left)


def match_texts(measured: Sequence[Measurement]) -> list[HeldOutText]:
    """The texts of measurements that `load_measurements` found to be comparable, in their order."""
    return [_match(name, [one.documents[name] for one in measured]) for name in measured[0].documents]


def _load(condition: str, position: int, folder: Path, is_trained: bool) -> Measurement:
    artifact = Artifact.open(folder, kind="held_out")
    documents: dict[str, list[dict[str, Any]]] = {}
    with open(artifact.path / DOCUMENTS, encoding="utf-8") as file:
        for row in map(json.loads, file):
            documents.setdefault(row["source"], []).append(row)
    return Measurement(f"{condition} (model {position + 1})", Model(condition, is_trained),
                       {key: artifact.settings.get(key) for key in _SAME}, documents)


def _mismatches(first: Measurement, other: Measurement) -> list[str]:
    pair = f"{first.name} and {other.name}"
    problems = [f"{key} of {pair}: {first.settings[key]!r} and {other.settings[key]!r}"
                for key in _SAME if first.settings[key] != other.settings[key]]
    if first.documents.keys() != other.documents.keys():
        return [*problems, f"texts of {pair}: {', '.join(first.documents)} and {', '.join(other.documents)}"]
    return problems + [f"{name}: the documents of {pair} differ" for name in first.documents
                       if _facts(first.documents[name]) != _facts(other.documents[name])]


def _facts(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """What no model decides."""
    return [{key: value for key, value in row.items() if key not in _OWN} for row in rows]


def _match(name: str, models: Sequence[Sequence[Mapping[str, Any]]]) -> HeldOutText:
    return HeldOutText.of(name, BITS_PER_BYTE, [_by_cluster(rows) for rows in models], num_documents=len(models[0]))


def _by_cluster(rows: Sequence[Mapping[str, Any]]) -> list[float]:
    """Bits a byte of each cluster, in the order of their first documents."""
    sums: dict[str, np.ndarray] = {}
    for row in rows:
        sums.setdefault(row["cluster"], np.zeros(2))[:] += row["nats"], row["bytes"]
    return [float(nats / math.log(2) / num_bytes) for nats, num_bytes in sums.values()]
