"""Held-out documents that training text holds, too: found in any case and order, counted, and left out on demand."""

import json

import pytest

from evaluation.compare_held_out import CompareHeldOutSettings, compare_held_out
from megatron_ext.artifacts import produce
from megatron_ext.data.documents import Document, DocumentWriter
from megatron_ext.data.selection.overlap import OverlapSettings, find_overlap
from megatron_ext.data.tokenization import is_validation
from megatron_ext.errors import UserError
from megatron_ext.study.arms import narrowed
from megatron_ext.study.graph import build_graph
from tests.unit.test_held_out_comparison import write_held_out
from tests.unit.test_study import load, study_values  # noqa: F401

FRACTION = 0.3


def words(seed, count):
    """A text that shares no word with that of another seed."""
    return " ".join(f"pão{seed}_{i}" for i in range(count))


def ids_by_side(prefix, count):
    ids = [f"{prefix}{i}" for i in range(400)]
    held_out = [one for one in ids if is_validation(one, 0, FRACTION)]
    return held_out[:count], [one for one in ids if one not in held_out][:count]


def write_documents(folder, rows, kind="selection"):
    """rows: (id, document_id, style, text)"""
    def make(place):
        with DocumentWriter(place) as writer:
            for id, document_id, style, text in rows:
                writer.write(Document(id, document_id, style, text, len(text.split())))
        return {}

    return produce(folder, kind=kind, settings={"rows": rows}, inputs={}, make=make).path


@pytest.fixture
def texts(tmp_path):
    """Settings of the stage over a source, its rewrites and neutral text, with a known overlap, and their ids."""
    held_out, trained = ids_by_side("d", 6)
    rows = [(one, one, "original", words(number, 60)) for number, one in enumerate([*held_out, *trained])]
    high = write_documents(tmp_path / "high", rows)
    shared = rows[0][3].split()[20:33]  # 13 words of the first that is held out
    first = f"Antes disso, {' '.join(shared).upper()}; {words(50, 30)}"
    rewrites = write_documents(tmp_path / "rewrites", [
        (f"{trained[0]}/easy", trained[0], "easy", first),
        (f"{trained[1]}/easy", trained[1], "easy", f"{words(51, 20)} {' '.join(rows[1][3].split()[:12])}"),  # one less
        (f"{held_out[2]}/easy", held_out[2], "easy", rows[3][3]),  # held out itself
        (f"{trained[2]}/qa", trained[2], "qa", rows[4][3]),
    ], kind="rewrites")
    (tmp_path / "neutral.jsonl").write_text("".join(json.dumps({"id": one, "text": text}) + "\n" for one, text in [
        ("n0", words(90, 60)), ("n1", rows[6][3] + " e nada mais"), ("n\u2028 2", words(91, 60))]))
    return OverlapSettings(training={"high": high, "rewrites": rewrites}, held_out={"high": high, "rewrites": rewrites},
                           neutral={"neutral": tmp_path / "neutral.jsonl"}, valid_fraction=FRACTION), held_out, trained


def found(artifact):
    with open(artifact.path / "documents.jsonl", encoding="utf-8") as file:
        return {(row["source"], row["id"]): (row["shares_words"], row["near_duplicate_of"])
                for row in map(json.loads, file)}


def test_shared_words_and_near_duplicates_are_found(texts, tmp_path):
    settings, held_out, _ = texts
    artifact = find_overlap(settings, tmp_path / "overlap")
    assert found(artifact) == {
        ("high", held_out[0]): (["rewrites"], []),
        ("high", held_out[4]): (["rewrites"], ["rewrites"]),
        ("neutral", "n1"): (["high"], ["high"]),
    }
    counts = json.loads((artifact.path / "overlap.json").read_text())
    assert counts["high"] == {"documents": 6, "overlapping": 2, "training": {
        "high": {"shares_words": 0, "near_duplicates": 0}, "rewrites": {"shares_words": 2, "near_duplicates": 1}}}
    assert (counts["neutral"]["overlapping"], counts["rewrites"]["documents"]) == (1, 1)


def test_styles_that_no_condition_uses_do_not_count(texts, tmp_path):
    settings, held_out, _ = texts
    easy = settings.model_copy(update={"styles": {"rewrites": ["easy"]}})
    assert ("high", held_out[4]) not in found(find_overlap(easy, tmp_path / "overlap"))


def test_neither_workers_nor_a_second_look_change_the_result(texts, tmp_path):
    settings, _, _ = texts
    hashes = {find_overlap(settings.model_copy(update={"workers": workers}), tmp_path / f"{workers}").content_hash
              for workers in (1, 2)}
    assert len(hashes) == 1


def test_without_any_held_out_document_there_is_nothing_to_look_for(texts, tmp_path):
    settings, _, _ = texts
    with pytest.raises(UserError, match="no document of held_out is held out"):
        find_overlap(settings.model_copy(update={"valid_fraction": 0.0, "neutral": {}}), tmp_path / "overlap")


@pytest.fixture
def overlap(tmp_path):
    """An overlap that holds three documents of the neutral text and none of the others."""
    def make(place):
        (place / "overlap.json").write_text(json.dumps({
            "neutral": {"documents": 60, "overlapping": 3, "training": {
                "high": {"shares_words": 3, "near_duplicates": 1}, "low": {"shares_words": 0, "near_duplicates": 0}}},
            "high": {"documents": 60, "overlapping": 0, "training": {}}}))
        (place / "documents.jsonl").write_text("".join(json.dumps({"source": "neutral", "id": f"neutral-{i}"}) + "\n"
                                                       for i in (0, 7, 21)))
        return {}

    return produce(tmp_path / "overlap", kind="overlap", settings={"ngram": 13}, inputs={}, make=make).path


@pytest.mark.parametrize("what", ["keep", "remove"])
def test_the_comparison_tells_them_and_leaves_them_out_on_demand(overlap, what, tmp_path):
    effects = {"low": {"neutral": 0.02, "high": 0.06}, "high": {"neutral": 0.0, "high": 0.0}}
    folders = {name: [write_held_out(tmp_path / name, one, seed=number)]
               for number, (name, one) in enumerate(effects.items())}
    artifact = compare_held_out(CompareHeldOutSettings(
        held_out=folders, baseline="low", given=[], neutral=["neutral"], overlap=overlap, overlapping=what,
        num_resamples=200), tmp_path / "compared")
    comparison = json.loads((artifact.path / "held_out.json").read_text())
    assert {text["name"]: text["num_documents"] for text in comparison["texts"]} == {
        "neutral": 60 if what == "keep" else 57, "high": 60}
    assert [one for one in comparison["caveats"] if "in part" in one] == [
        "Of the 60 held-out documents of “neutral” training text holds 3 in part (high: 3 share 13 words in a row, 1 "
        f"are near duplicates); they are {'counted all the same' if what == 'keep' else 'left out'}."]
    assert "overlap" in artifact.manifest["request"]["inputs"]


def test_a_study_looks_in_what_its_conditions_train_on(load, study_values, tmp_path):  # noqa: F811
    values = study_values | {"subsets": study_values["subsets"] | {"unused": {"rule": "stem > 4", "budget_tokens": 9}}}
    nodes = {node.name: node for node in build_graph(load(values))}
    overlap = nodes["overlap/held_out"]
    assert {key for key in overlap.inputs if key.startswith("training.")} == {
        "training.low", "training.high", "training.high_rewrites"}
    assert {key for key in overlap.inputs if key.startswith("held_out.")} == {
        "held_out.low", "held_out.high", "held_out.high_rewrites", "held_out.unused"}
    assert nodes["compare/held_out"].inputs["overlap"] is overlap
    high = nodes["select/high"].output(tmp_path / "work")
    produce(high, kind="selection", settings={}, inputs={}, make=lambda folder: {})
    assert set(narrowed(overlap, tmp_path / "work").inputs) == {"training.high", "held_out.high"}
