"""The page: gather the numbers, draw, fill the template."""

from __future__ import annotations

import json
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Annotated, Any

from evaluation.measures import printed_as
from evaluation.report.cost import cost_section
from evaluation.report.custody import chain_section, parity_section, software_section
from evaluation.report.data import rewriting_section, selection_section, tokenized_section
from evaluation.report.gold import gold_section
from evaluation.report.held_out import held_out_section
from evaluation.report.judge import judged_section
from evaluation.report.methods import methods_paragraph
from evaluation.report.plots import loss_charts, npm_chart, short_count
from evaluation.report.record import StudyRecord, label, model_label
from evaluation.report.results import results_section
from evaluation.report.scales import condition_colors, line_looks
from evaluation.report.suites import suite_section
from evaluation.report.tables import csv_links
from evaluation.report.training import training_section
from evaluation.verdicts import count, p_text, signed
from megatron_ext.artifacts import Artifact, hash_file, write_json, write_text
from megatron_ext.identity import PLACE
from megatron_ext.stage import StageSettings, make_artifact

_HERE = Path(__file__).parent
_TEMPLATE, _STYLE = "page.html.jinja", "page.css"
NUMBERS, MAKING = "report.json", "making.json"
_TELL_OF_THE_MAKING = ("cost", "software", "chain", "methods")
"""Sections that two equal studies differ in: times, versions, hashes of what holds times."""


class ReportSettings(StageSettings):
    """Settings of the report."""

    study: Annotated[Path, PLACE]
    """study.json, as tools.run_study writes it."""


def write_report(settings: ReportSettings, output: Path) -> Artifact:
    """Make the artifact `output` (kind "report"): report.html, and the numbers shown in report.json, which is the
    content, and making.json (times, cost, software, chain of hashes).

    Raises UserError when the record cannot be read or an artifact that it names is damaged.
    """
    record = StudyRecord.read(settings.study)
    look = {name: hash_file(_HERE / name) for name in (_TEMPLATE, _STYLE)}

    def make(folder: Path) -> dict[str, Any]:
        numbers = gather(record)
        plain = _plain(numbers)
        making = {key: plain.pop(key) for key in _TELL_OF_THE_MAKING}
        making["speed"] = plain["training"].pop("speed") if plain["training"] else None
        write_json(folder / NUMBERS, plain)
        write_json(folder / MAKING, making)
        page = render(numbers)
        write_text(folder / "report.html", page)
        return {"bytes": len(page.encode())}

    return make_artifact(output, kind="report", settings=settings, more={"look": look}, inputs=record.inputs(),
                         make=make, beside=lambda name: name != NUMBERS)


def gather(record: StudyRecord) -> dict[str, Any]:
    """All numbers and texts of the page, by section; a section without its artifacts is None or empty."""
    results = results_section(record)
    held_out = held_out_section(record)
    gold, suites = gold_section(record), suite_section(record)
    training = training_section(record)
    judged, rewriting = judged_section(record), rewriting_section(record)
    shown = [*(results["conditions"] if results else []),
             *(held_out["texts"][0]["conditions"] if held_out else []),
             *(one for part in (suites["parts"][:1] if suites else []) for one in part["conditions"])]
    given = [one["name"] for one in shown if not one["is_trained"]]
    names = list(dict.fromkeys([*(one["name"] for one in shown), *record.conditions]))
    numbers: dict[str, Any] = {
        "name": label(record.values["name"]),
        "description": record.values.get("description", ""),
        "notes": [*record.values.get("notes", []), *(f"Condition {label(name)!r} is missing: {why}"
                                                     for name, why in record.values.get("missing", {}).items()),
                  *(caveat for part in (rewriting, judged) if part for caveat in part["caveats"])],
        "base_model": model_label(record.values.get("settings", {}).get("base_model")),
        "colors": condition_colors(names, given),
        "registration": _registration(record),
        "verdict": _verdict(results, gold, held_out, suites),
        "results": results,
        "held_out": held_out,
        "gold": gold,
        "suites": suites,
        "training": training,
        "selection": selection_section(record),
        "rewriting": rewriting,
        "judged": judged,
        "tokenized": tokenized_section(record),
        "parity": parity_section(record),
        "cost": cost_section(record, record.comparison()),
        "chain": chain_section(record),
        "software": software_section(record),
        "missing": record.missing,
    }
    return numbers | {"methods": methods_paragraph(record, numbers)}


def _registration(record: StudyRecord) -> dict[str, Any] | None:
    """The outcome that was named before anything ran, and what was edited since; None in an older record."""
    registered = record.values.get("registration")
    return registered and {**registered, "primary": label(registered["primary"]), "edits": [
        f"{one['key']}: {json.dumps(one['before'])} at first, then {json.dumps(one['now'])}"
        for one in registered["edits"]]}


def _verdict(results: dict[str, Any] | None, gold: dict[str, Any] | None, held_out: dict[str, Any] | None,
             suites: dict[str, Any] | None) -> dict[str, Any] | None:
    """The page's answer: of the outcome that the study named before it ran, then all others."""
    named = [part for part in (held_out, gold, suites) if part and part["headline"]]
    parts = [*named, *(part for part in (results, gold, held_out, suites) if part and part not in named)]
    headline = next((part["headline"] for part in parts if part["headline"]), None)
    return headline and {**headline, "verdicts": [verdict for part in parts for verdict in part["verdicts"]],
                         "caveats": [caveat for part in parts for caveat in part["caveats"]]}


def render(numbers: dict[str, Any]) -> str:
    """The page as HTML, everything in one file."""
    import jinja2

    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(_HERE), autoescape=True, trim_blocks=True,
                                     lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.filters |= {"number": _number, "signed": _signed, "fixed": _fixed, "short": short_count,
                            "label": label, "p": p_text, "value": _value, "difference": _difference,
                            "sci": lambda value: f"{value:.1e}".replace("-", "−")}
    training = numbers["training"]
    lines = line_looks(numbers["colors"])
    charts = loss_charts(training["curves"], lines) if training else []
    curves = numbers["results"]["curves"] if numbers["results"] else {}
    curve_chart = npm_chart(curves, lines) if curves else None
    style = (_HERE / _STYLE).read_text(encoding="utf-8")
    return environment.get_template(_TEMPLATE).render(
        **numbers, charts=charts, curve_chart=curve_chart, style=style, count=count, lines=lines,
        csv_links=csv_links(numbers))


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.0f}"


def _fixed(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}".replace("-", "−")


def _value(value: float | None, measure: str) -> str:
    return "–" if value is None else printed_as(measure).plain(value)


def _difference(value: float | None, measure: str) -> str:
    return "–" if value is None else printed_as(measure).signed(value)


def _signed(value: float | None) -> str:
    return "–" if value is None else signed(value)


def _plain(value: Any) -> Any:
    """JSON-able copy."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list) else value
