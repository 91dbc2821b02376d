"""The tables of the page as CSV, with all digits: links that hold the file itself, so that the page can be mailed."""

from __future__ import annotations

import base64
import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any

from evaluation.report.record import flat, label

Row = Mapping[str, Any]


def csv_links(numbers: Mapping[str, Any]) -> dict[str, str]:
    """Name of a table -> a `data:` address of its CSV (UTF-8); tables without rows are left out.

    `numbers`: evaluation.report.page.gather's.
    """
    return {name: f"data:text/csv;charset=utf-8;base64,{base64.b64encode(as_csv(rows).encode()).decode()}"
            for name, rows in tables(numbers).items()}


def as_csv(rows: Iterable[Row]) -> str:
    """One line a row, a column for each key of any of them; sections as dots, lists of words joined by `; `."""
    flattened = [{key: _cell(value) for key, value in flat(row).items() if _is_plain(value)} for row in rows]
    columns = list(dict.fromkeys(key for row in flattened for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flattened)
    return text.getvalue()


def tables(numbers: Mapping[str, Any]) -> dict[str, list[Row]]:
    """Name -> rows of everything that the page shows as a table or as bars."""
    found: dict[str, list[Row]] = {}
    for section, rows_of in _SECTIONS.items():
        if numbers.get(section):
            found |= rows_of(numbers[section])
    return {name: rows for name, rows in found.items() if rows}


def _results(results: Row) -> dict[str, list[Row]]:
    return {
        "npm": [{"condition": one["label"], "group": group, **npm, "seeds": one["seeds"] if group == "all" else []}
                for one in results["conditions"] for group, npm in one["npm"].items()],
        "differences": [*(row for family in results["families"] for row in _without(family["rows"], "groups")),
                        *({"family": "interactions", **one} for one in results["interactions"])],
        "tasks": [{"task": task["name"], "metric": task["metric"], "items": task["num_items"],
                   "condition": label(cell["name"]), **cell["npm"], "invalid_rate": cell["invalid_rate"]}
                  for task in results["tasks"] for cell in task["cells"]],
        "signal": results["signal"],
        "peaks": results["peaks"]["rows"],
        "categories": [{"category": one["name"], "tasks": one["num_tasks"], "condition": condition["label"], **cell}
                       for one in results["categories"]
                       for condition, cell in zip(results["conditions"], one["cells"], strict=True)],
    }


def _held_out(held_out: Row) -> dict[str, list[Row]]:
    return _charted("held-out", [({"text": text["name"]}, text) for text in held_out["texts"]])


def _gold(gold: Row) -> dict[str, list[Row]]:
    return _charted("gold", [({"measure": part["measure"]}, part) for part in gold["measures"]])


def _charted(name: str, parts: Iterable[tuple[Row, Row]]) -> dict[str, list[Row]]:
    parts = list(parts)
    return {
        name: [{**of, "condition": one["label"], **one["estimate"], "seeds": one["per_seed"]}
               for of, part in parts for one in part["conditions"]],
        f"{name}-differences": [{**of, **row} for of, part in parts for family in part["families"]
                                for row in family["rows"]],
    }


def _training(training: Row) -> dict[str, list[Row]]:
    return {
        "exposure": training["exposure"],
        "losses": [{"condition": row["condition"], "source": source, "measure": measure, **loss}
                   for row in training["losses"]["rows"] for source, measures in row["sources"].items()
                   for measure, loss in measures.items()],
    }


def _selection(selections: list[Row]) -> dict[str, list[Row]]:
    return {
        "selection": [{**one, "contamination": {}, "rejected": {row["reason"]: row["count"] for row in one["rejected"]}}
                      for one in selections],
        "contamination": [{"subset": one["name"], **task} for one in selections if one["contamination"]
                          for task in one["contamination"]["tasks"]],
    }


def _rewriting(rewriting: Row) -> dict[str, list[Row]]:
    styles = [(subset["name"], style) for subset in rewriting["subsets"] for style in subset["styles"]]
    return {
        "rewriting": [{"subset": subset, **style, "reasons": _counts(style)} for subset, style in styles],
        "acceptance": [{"subset": subset, "style": style["style"], **_scalars(found), **bin_of}
                       for subset, style in styles for found in style["acceptance"] for bin_of in found["bins"]],
    }


def _judged(judged: Row) -> dict[str, list[Row]]:
    return {
        "judged": [{"subset": subset["name"], **style, "reasons": _counts(style)}
                   for subset in judged["subsets"] for style in subset["styles"]],
        "judge": [{"subset": subset["name"], "labelled": name, **found, "reasons": _counts(found)}
                  for subset in judged["subsets"] for name, found in subset["labelled"].items()],
    }


def _cost(cost: Row) -> dict[str, list[Row]]:
    return {"cost": _without(cost["stages"], "time", "percent"), "gains": cost["gains"]}


_SECTIONS = {
    "results": _results, "held_out": _held_out, "gold": _gold, "training": _training, "selection": _selection,
    "tokenized": lambda rows: {"tokenized": rows}, "rewriting": _rewriting, "judged": _judged,
    "parity": lambda rows: {"parity": rows}, "cost": _cost,
}


def _counts(one: Row) -> Row:
    return {row["reason"]: row["count"] for row in one["reasons"]}


def _scalars(row: Row) -> Row:
    return {key: value for key, value in row.items() if not isinstance(value, (list, Mapping))}


def _without(rows: Iterable[Row], *keys: str) -> list[Row]:
    return [{key: value for key, value in row.items() if key not in keys} for row in rows]


def _is_plain(value: Any) -> bool:
    return not isinstance(value, list) or not any(isinstance(one, (list, Mapping)) for one in value)


def _cell(value: Any) -> Any:
    return "; ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
