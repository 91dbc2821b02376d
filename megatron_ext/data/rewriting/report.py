"""The fidelity report: one self-contained page to look at. Equal numbers and texts give equal bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_ext.data.rewriting.settings import RewriteSettings
from megatron_ext.data.rewriting.summary import DISTRIBUTIONS, NUM_PAIRS, style_totals
from megatron_ext.files import write_text

REPORT_FILE = "report.html"
_TITLES = {
    "length_ratio": "length ratio", "copied_fraction": "copied from the source",
    "shared_fraction": "content words that the source has", "number_retention": "numbers kept",
    "name_retention": "names kept",
}


def write_report(folder: Path, settings: RewriteSettings, summary: dict[str, Any],
                 samples: dict[str, list[dict[str, Any]]]) -> None:
    """Write report.html: the token ledger, reasons and distributions by style, and pairs side by side.

    `samples`: rows of surviving chunks by style; the page shows 20, of the styles in turn.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True,
                              undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page = environment.get_template("report.html.j2").render(
        styles=summary["styles"], totals=style_totals(list(summary["styles"].values())),
        selection=summary["selection"], rewrites=summary["rewrites"], settings=settings,
        distributions={name: {"title": _TITLES[name], "upper": upper} for name, upper in DISTRIBUTIONS.items()},
        pairs=_in_turn(samples))
    write_text(folder / REPORT_FILE, page)


def _in_turn(samples: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """20 pairs, a style after the other, as long as they have any."""
    rounds = range(max(map(len, samples.values()), default=0))
    pairs = [chosen[number] for number in rounds for chosen in samples.values() if number < len(chosen)]
    return pairs[:NUM_PAIRS]
