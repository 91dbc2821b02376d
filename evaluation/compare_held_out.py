"""Stage 7 on held-out text: compare conditions in bits a byte, document by document.

    python -m evaluation.compare_held_out --output work/held_out baseline=low neutral=[neutral] \
        held_out='{base: [held/base], low: [held/low-0], high: [held/high-0]}'

Fewer bits a byte are better. But that a model has a lower loss on text like the one it was trained on only shows that
it learnt: what counts is neutral text, which no condition was trained on, and the text of the other condition.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from evaluation import verdicts
from evaluation.comparing import numbered, refuse_unknown_names, tell, with_baseline
from evaluation.contrasts import (
    Contrasts,
    compared_in,
    correct_by_family,
    difference_of_differences,
    ordered_pairs,
)
from evaluation.held_out import HeldOutText, load_measurements, match_texts, without
from evaluation.measures import BITS_PER_BYTE
from evaluation.overlap import load_overlap
from megatron_ext.artifacts import Artifact, write_json
from megatron_ext.errors import exit_on_user_error
from megatron_ext.identity import PLACE
from megatron_ext.settings import parse_stage_arguments
from megatron_ext.stage import StageSettings, make_artifact

HELD_OUT = "held_out.json"
KIND = "held_out_comparison"


class CompareHeldOutSettings(StageSettings):
    """What is compared with what, on which texts."""

    held_out: Annotated[dict[str, list[Path]], PLACE]
    """Condition -> held-out losses, one a seed."""
    baseline: str
    """Condition that the others are compared with first."""
    neutral: list[str] = Field(default_factory=list)
    """Texts that no condition was trained on."""
    trained_on: dict[str, list[str]] = Field(default_factory=dict)
    """Condition -> texts of the kind that it was trained on."""
    primary: str | None = None
    """Text whose differences are corrected for their own number alone: named before anything was measured."""
    interactions: dict[str, list[str]] = Field(default_factory=dict)
    """Name -> conditions [a, b, c, d]: is a - b another difference than c - d?"""
    given: list[str] = Field(default_factory=lambda: ["base"])
    """Conditions that are a given model, not a training run."""
    missing: list[str] = Field(default_factory=list)
    """What was to be compared, too."""
    overlap: Annotated[Path | None, PLACE] = None
    """Which held-out documents training text holds, too (artifact of tools.find_overlap)."""
    overlapping: Literal["keep", "remove"] = "keep"
    """What becomes of them."""
    num_resamples: int = Field(default=10_000, ge=200)
    """Bootstrap resamples, and permutations of the test."""
    seed: int = Field(default=0, ge=0)
    """Decides the resamples."""

    @model_validator(mode="after")
    def _names(self) -> CompareHeldOutSettings:
        lacks_overlap = self.overlapping == "remove" and self.overlap is None
        refuse_unknown_names("held_out", self.held_out, self.baseline, self.interactions,
                             ["overlapping: to remove them, name the overlap"] if lacks_overlap else [])
        return self


def compare_held_out(settings: CompareHeldOutSettings, output: Path) -> Artifact:
    """Make the artifact `output` (kind "held_out_comparison"): held_out.json.

    Raises UserError when two models were not measured in the same way on the same documents.
    """
    more = {"conditions": {name: len(folders) for name, folders in settings.held_out.items()}}
    inputs = numbered(settings.held_out) | ({"overlap": settings.overlap} if settings.overlap else {})

    def make(folder: Path) -> dict[str, Any]:
        comparison = compare_measurements(settings)
        write_json(folder / HELD_OUT, comparison)
        return {"texts": {one["name"]: one["num_clusters"] for one in comparison["texts"]},
                "models": sum(more["conditions"].values())}

    return make_artifact(output, kind=KIND, settings=settings, more=more, inputs=inputs, make=make)


def compare_measurements(settings: CompareHeldOutSettings) -> dict[str, Any]:
    """The content of held_out.json."""
    overlap = load_overlap(settings.overlap) if settings.overlap else None
    measured = load_measurements(settings.held_out, settings.given)
    if overlap and settings.overlapping == "remove":
        measured = [without(one, overlap.documents) for one in measured]
    study = Contrasts([one.model for one in measured], match_texts(measured), settings.num_resamples, settings.seed)
    texts = [_text(study, settings, text) for text in study.tasks]
    for family in (True, False):
        _conclude(study, [one for one in texts if (one["name"] == settings.primary) == family])
    return {
        "measure": asdict(BITS_PER_BYTE), "baseline": settings.baseline, "primary": settings.primary,
        "num_resamples": settings.num_resamples, "missing": settings.missing, "texts": texts,
        "overlap": overlap and overlap.texts, "overlapping": settings.overlapping,
        "caveats": [*_caveats(study, settings), *(overlap.caveats(settings.overlapping) if overlap else
                                                  ["Whether training text holds held-out documents, was not looked "
                                                   "for."])],
    }


def _text(study: Contrasts[HeldOutText], settings: CompareHeldOutSettings, text: HeldOutText) -> dict[str, Any]:
    """Values, differences and interactions on one text, not yet corrected for their number."""
    pairs = ordered_pairs(list(settings.held_out), settings.given, settings.baseline)
    return {
        "name": text.name, "is_neutral": text.name in settings.neutral,
        "trained_on_by": [name for name, texts in settings.trained_on.items() if text.name in texts],
        "num_documents": text.num_documents, "num_clusters": text.num_items,
        "conditions": {name: study.describe(name, [text]) for name in settings.held_out},
        "differences": [{"condition": condition, "reference": reference, "family": family,
                         "estimate": study.estimate({condition: 1.0, reference: -1.0}, [text])}
                        for condition, reference, family in pairs],
        "interactions": [{"name": name, "conditions": names, "family": "interactions", "estimate": study.estimate(
            difference_of_differences(names), [text])} for name, names in settings.interactions.items()],
    }


def _conclude(study: Contrasts[HeldOutText], texts: list[dict[str, Any]]) -> None:
    """Correct the p values of each family over these texts (Holm), and say what may be said."""
    found = [(text, one) for text in texts for one in [*text["differences"], *text["interactions"]]]
    correct_by_family([one for _, one in found])
    for text, one in found:
        owners = text["trained_on_by"]
        if "conditions" not in one:
            one["counts"] = not verdicts.only_learnt_its_own(*compared_in(one), one["estimate"]["value"], owners,
                                                             BITS_PER_BYTE)
        verdict = partial(verdicts.held_out_verdict, text=text["name"], trained_on_by=owners,
                          one_seed=study.is_unrepeated(compared_in(one)))
        verdicts.conclude(one, verdict, num_items=text["num_clusters"], measure=BITS_PER_BYTE)


def _caveats(study: Contrasts[HeldOutText], settings: CompareHeldOutSettings) -> Iterable[str]:
    if settings.missing:
        yield f"Missing on held-out text: {', '.join(settings.missing)}."
    trained = [name for name in settings.held_out if name not in settings.given]
    if min((len(study.positions(name)) for name in trained), default=2) < 2:
        yield ("Held-out text, one training run a condition: the intervals cover the choice of documents, not what "
               "another seed would give.")
    if not settings.neutral:
        yield ("No neutral text was measured: on the text of a condition's own source a lower loss shows that it "
               "learnt, not that it is better.")


@exit_on_user_error
def main() -> None:
    """Parse the command line, compare, tell the verdicts."""
    settings, output = parse_stage_arguments(CompareHeldOutSettings, __doc__ or "")
    artifact = compare_held_out(settings, output)
    comparison = json.loads((artifact.path / HELD_OUT).read_text(encoding="utf-8"))
    texts = sorted(comparison["texts"], key=lambda text: text["name"] != settings.primary)
    tell(with_baseline(texts), comparison["caveats"])


if __name__ == "__main__":
    sys.exit(main())
