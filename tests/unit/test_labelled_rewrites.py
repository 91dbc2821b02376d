"""Hand-written rewrites, good and bad of all kinds: how often the checks are wrong. The bounds hold for each set."""

import json
import re
from pathlib import Path

import pytest

from megatron_ext.data.rewriting.checking.lexicon import LANGUAGES_FOLDER
from megatron_ext.data.rewriting.pairs import judge_pairs

OTHERS = Path(__file__).parents[3] / "shared" / "cases" / "rewrites_labelled.jsonl"
SETS = [LANGUAGES_FOLDER / "pt" / "labelled.jsonl",
        pytest.param(OTHERS, marks=pytest.mark.skipif(not OTHERS.exists(), reason="is not part of the project"))]
MEANING = {"acronym", "appeared", "currency", "decimal", "direction", "hallucinated", "invented", "lost", "months",
           "neg", "negation", "opposite", "other", "price", "roles", "scale", "summary", "swapped", "tenfold", "unit",
           "wrong"}


def is_about_meaning(kind):
    return kind.split("-")[0] in MEANING or kind in ("qa-wrong-answer", "qa-outside")


@pytest.fixture(scope="module", params=SETS, ids=["own", "others"])
def rows(request, tmp_path_factory):
    output = tmp_path_factory.mktemp("judged") / "rows.jsonl"
    tally = judge_pairs(request.param, output, "pt")
    print("\n".join(tally.lines()))
    return [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]


def share(rows, accepted):
    return sum(row["accepted"] == accepted for row in rows) / len(rows)


def test_good_rewrites_are_kept_with_numbers_and_without(rows):
    good = [row for row in rows if row["label"] == "good"]
    with_numbers = [row for row in good if re.search(r"\d", row["source"])]
    without = [row for row in good if not re.search(r"\d", row["source"])]
    assert len(good) > 80 and len(without) > 15
    assert share(good, accepted=False) <= 0.04
    assert abs(share(with_numbers, accepted=False) - share(without, accepted=False)) <= 0.05


def test_bad_rewrites_are_found(rows):
    bad = [row for row in rows if row["label"] == "bad"]
    meaning = [row for row in bad if is_about_meaning(row["kind"])]
    form = [row for row in bad if not is_about_meaning(row["kind"])]
    assert len(meaning) >= 15 and len(form) >= 20
    assert share(form, accepted=True) <= 0.07, [row["kind"] for row in form if row["accepted"]]
    assert share(meaning, accepted=True) <= 0.40, [row["kind"] for row in meaning if row["accepted"]]
