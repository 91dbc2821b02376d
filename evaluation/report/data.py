"""Where the data came from: selection, rewriting with examples, tokenized sources."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from evaluation.report.record import StudyRecord, joined, label
from megatron_ext.artifacts import Artifact
from megatron_ext.data.rewriting.packs import language_of

_SHOWN_PAIRS = 4
_SHOWN_CHARS = 420
_FEW_SURVIVORS = 0.5
"""Of a style's chunks, as a share: fewer are a choice that a reader must know of."""
_PROPERTIES = {"num_source_tokens": "tokens of the source", "numbers_per_100_words": "numbers per 100 words"}


def selection_section(record: StudyRecord) -> list[dict[str, Any]]:
    """Each subset: rule, what passed, what was rejected and why."""
    selections = record.named("selections")
    if not selections:
        record.without("No selection is there: its figures are left out.")
    return [_selection(name, artifact) for name, artifact in selections.items()]


def rewriting_section(record: StudyRecord) -> dict[str, Any] | None:
    """Survival of rewrites by subset and style, and a few pairs; None when nothing was rewritten."""
    rewrites = record.named("rewrites")
    if not rewrites:
        record.without("Nothing was rewritten in this study.")
        return None
    subsets = [_rewrites(name, artifact, record) for name, artifact in rewrites.items()]
    return {"subsets": subsets, "pairs": list(_pairs(rewrites)),
            "caveats": [caveat for subset in subsets for caveat in _caveats(subset)]}


def tokenized_section(record: StudyRecord) -> list[dict[str, Any]]:
    """Tokens of each source, training and held out."""
    return [{"name": label(name), "train": artifact.counts["train"], "valid": artifact.counts["valid"]}
            for name, artifact in record.named("tokenized").items()]


def _selection(name: str, artifact: Artifact) -> dict[str, Any]:
    counts = artifact.counts
    rejected = sorted(counts.get("rejected", {}).items(), key=lambda item: -item[1])
    return {
        "name": label(name), "rule": artifact.settings.get("rule"), "documents": counts["documents"],
        "input_documents": counts.get("input_documents"), "tokens": counts["tokens"],
        "budget_tokens": artifact.settings.get("budget_tokens"), "missing_tokens": counts.get("missing_tokens", 0),
        "mean_scores": counts.get("mean_scores", {}),
        "contamination": _contamination(counts.get("contamination")),
        "rejected": [{"reason": label(reason), "count": number} for reason, number in rejected if number],
    }


def _contamination(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """Items of the tests that stand in the corpus, the most affected tasks first; None where it was not measured."""
    if not found:
        return None
    tasks = sorted(found["tasks"].items(), key=lambda task: -task[1]["items_hit"])
    return {"action": found["action"], "ngram": found["ngram"], "documents": found["documents_hit"],
            "items_hit": sum(one["items_hit"] for _, one in tasks),
            "items_checked": sum(one["items_checked"] for _, one in tasks),
            "tasks": [{"name": label(name), **one} for name, one in tasks if one["items_hit"]]}


def _rewrites(name: str, artifact: Artifact, record: StudyRecord) -> dict[str, Any]:
    summary = json.loads((artifact.path / "summary.json").read_text(encoding="utf-8"))
    order = [style for style in artifact.settings.get("styles", []) if style in summary["styles"]]
    styles = [_style(style, summary["styles"][style]) for style in order or summary["styles"]]
    total = sum(one["num_chunks"] for one in styles)
    survived = sum(one["num_survived"] for one in styles)
    originals = f"{name}_{'rewritten_' if name in record.values.get('selections', {}) else ''}originals"
    return {"name": label(name), "originals": originals, "has_control": originals in record.named("tokenized"),
            "styles": styles, "num_chunks": total, "num_survived": survived,
            "survived_percent": 100 * survived / total if total else None, "tokens": artifact.counts["tokens"],
            "documents": artifact.counts["documents"], "num_chosen_documents":
                summary.get("selection", {}).get("num_chosen_documents")}


def _caveats(subset: dict[str, Any]) -> Iterator[str]:
    """That few passages survived in a style, where no condition shows what their choice does."""
    few = [f"{one['num_survived']:,} of {one['num_chunks']:,} in style “{one['style']}”" for one in subset["styles"]
           if 0 < one["num_survived"] < _FEW_SURVIVORS * one["num_chunks"]]
    if few and not subset["has_control"]:
        yield (f"Few chunks of {subset['name']} survived the checks: {joined(few)}. The rewrites are of a choice of "
               f"passages, and no condition holds their originals ({subset['originals']}): what looks like an "
               "effect of rewriting may be one of that choice.")


def _style(style: str, values: dict[str, Any]) -> dict[str, Any]:
    reasons = sorted(values["reasons"].items(), key=lambda item: -item[1])
    return {
        "style": style, "num_chunks": values["num_chunks"], "num_survived": values["num_survived"],
        "survived_percent": values["survived_percent"],
        "reasons": [{"reason": label(reason), "count": number} for reason, number in reasons if number],
        "tokens_in": values["num_survivor_source_tokens"], "tokens_out": values["num_survivor_tokens"],
        "length_ratio": values["length_ratio"],
        "acceptance": [{"property": _PROPERTIES.get(name, name), **found}
                       for name, found in values.get("acceptance", {}).items()],
    }


def _pairs(rewrites: dict[str, Artifact]) -> Iterator[dict[str, Any]]:
    """Accepted and rejected rewrites in turn, of different styles where possible."""
    rows = [row | {"subset": name, "language": language_of(artifact.settings)}
            for name, artifact in rewrites.items() for row in _chunks(artifact)]
    chosen: list[dict[str, Any]] = []
    for number in range(_SHOWN_PAIRS):
        wanted = "accepted" if number % 2 == 0 else "rejected"
        free = [row for row in rows if row not in chosen]
        if not free:
            break
        styles = {row["style"] for row in chosen}
        chosen.append(min(free, key=lambda row, wanted=wanted, styles=styles: (row["status"] != wanted,
                                                                               row["style"] in styles)))
    for row in chosen:
        text = row["text"] or row["output"] or ""
        yield {"subset": label(row["subset"]), "language": row["language"], "style": row["style"],
               "is_accepted": row["status"] == "accepted", "reasons": [label(reason) for reason in row["reasons"]],
               "source": _shortened(row["source"]), "rewrite": _shortened(text)}


def _chunks(artifact: Artifact) -> list[dict[str, Any]]:
    """The first attempts of a rewriting; a page needs a few, a real study has millions."""
    import pyarrow.parquet as pq

    columns = ["style", "status", "reasons", "source", "output", "text"]
    with pq.ParquetFile(min((artifact.path / "chunks").glob("part-*.parquet"))) as file:
        batch = next(file.iter_batches(batch_size=400, columns=columns), None)
        return batch.to_pylist() if batch is not None else []


def _shortened(text: str) -> str:
    text = text.strip()
    return text if len(text) <= _SHOWN_CHARS else text[:_SHOWN_CHARS].rsplit(" ", 1)[0] + " …"
