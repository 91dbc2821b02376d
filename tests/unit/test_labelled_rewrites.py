"""Hand-written rewrites, good and bad of all kinds: how often the checks are wrong. The bounds hold for each set.

`labelled_rewrites/` holds batches, a passage with its rewrites a line, each written before the checks were changed for
it. Good rewrites of one passage say the same: each of them, as a source, must accept the others, too.
"""

import json
import re
from itertools import permutations
from pathlib import Path

import pytest

from megatron_ext.data.rewriting.packs import LANGUAGES_FOLDER
from megatron_ext.data.rewriting.pairs import judge_pairs

OTHERS = Path(__file__).parents[3] / "shared" / "cases" / "rewrites_labelled.jsonl"
BATCHES = sorted(Path(__file__).with_name("labelled_rewrites").glob("*.jsonl"))
OWN = LANGUAGES_FOLDER / "pt" / "labelled.jsonl"
SETS = [OWN, BATCHES,
        pytest.param(OTHERS, marks=pytest.mark.skipif(not OTHERS.exists(), reason="is not part of the project"))]
MEANING = {"acronym", "appeared", "currency", "decimal", "direction", "hallucinated", "invented", "lost", "months",
           "neg", "negation", "opposite", "other", "price", "roles", "scale", "summary", "swapped", "tenfold", "unit",
           "wrong"}


def is_about_meaning(kind):
    return kind.split("-")[0] in MEANING or kind in ("qa-wrong-answer", "qa-outside")


def read_lines(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def passages():
    """(source, [(style, kind, text)]) of all batches."""
    return [(line["source"], [(one["style"], one["kind"], one["text"]) for one in line["rewrites"]])
            for file in BATCHES for line in read_lines(file)]


def batch_rows():
    return [{"source": source, "style": style, "kind": kind, "label": "good" if kind == "good" else "bad", "text": text}
            for source, rewrites in passages() for style, kind, text in rewrites]


def judged(rows, folder):
    pairs, output = folder / "pairs.jsonl", folder / "rows.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print("\n".join(judge_pairs(pairs, output, "pt").lines()))
    return read_lines(output)


@pytest.fixture(scope="module", params=SETS, ids=["own", "batches", "others"])
def rows(request, tmp_path_factory):
    return judged(batch_rows() if request.param is BATCHES else read_lines(request.param),
                  tmp_path_factory.mktemp("judged"))


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


def test_good_rewrites_of_one_passage_accept_each_other(tmp_path):
    rows = [{"source": source, "style": style, "text": text} for _, rewrites in passages()
            for (written, _, source), (style, _, text) in permutations([one for one in rewrites if one[1] == "good"], 2)
            if written != "qa"]
    assert len(rows) > 500
    assert share(judged(rows, tmp_path), accepted=False) <= 0.04
