import json

import pyarrow as pa

from megatron_ext.artifacts import produce
from megatron_ext.data.documents import Document, DocumentWriter
from megatron_ext.data.rewriting.acceptance import Acceptance
from megatron_ext.data.rewriting.rewrite import rewrite_corpus
from tests.unit.test_rewriting import TEXTS, good_answer, model, scripted, settings_for  # noqa: F401


def rows(*values):
    return pa.table({"num_source_tokens": [one[0] for one in values],
                     "numbers_per_100_words": [one[1] for one in values],
                     "scores": pa.array([list(one[2].items()) for one in values], pa.map_(pa.string(), pa.float64()))})


def test_bins_hold_about_equally_many_chunks_and_their_survivors():
    acceptance = Acceptance()
    asked = [(tokens, 0.0, {"stem": 1.0}) for tokens in range(100)]
    for part in (asked[:30], asked[30:]):  # window by window
        acceptance.add(rows(*part), rows(*[one for one in part if one[0] < 20]))
    length = acceptance.result()["num_source_tokens"]
    assert [one["num_chunks"] for one in length["bins"]] == [20] * 5
    assert [one["num_survived"] for one in length["bins"]] == [20, 0, 0, 0, 0]
    assert (length["bins"][0]["from"], length["bins"][0]["to"]) == (0, 19)
    assert (length["mean"], length["survivor_mean"]) == (49.5, 9.5)
    assert [one["num_chunks"] for one in acceptance.result()["numbers_per_100_words"]["bins"]] == [100]
    assert acceptance.result()["score stem"]["bins"] == [
        {"from": 1.0, "to": 1.0, "num_chunks": 100, "num_survived": 20, "survived_percent": 20.0}]


def test_bins_of_few_or_lopsided_values():
    acceptance = Acceptance()
    asked = [(1, 0.0, {}), *[(2, 0.0, {})] * 97, (3, float("nan"), {"a": float("nan")}), (4, 1.0, {})]
    acceptance.add(rows(*[one for one in asked if one[0] != 3]), rows())
    bins = acceptance.result()["num_source_tokens"]["bins"]
    assert sum(one["num_chunks"] for one in bins) == 99 and [one["num_survived"] for one in bins] == [0] * len(bins)
    assert Acceptance().result() == {}


def test_the_summary_and_the_report_tell_which_text_survives(model, scripted, tmp_path):  # noqa: F811
    def make(partial):
        with DocumentWriter(partial, ["edu"]) as writer:
            for score, (name, text) in enumerate(TEXTS.items()):
                writer.write(Document(name, name, "original", text, len(text.encode()), {"edu": float(score)}))
        return {}

    produce(tmp_path / "selection", kind="selection", settings={}, inputs={}, make=make)
    scripted(lambda request: "" if "aves" in request.prompt or "voltam" in request.prompt else good_answer(request))
    rewrites = rewrite_corpus(settings_for(tmp_path / "selection", model, styles=["easy"], chunk_tokens=45),
                              tmp_path / "out")
    found = json.loads((rewrites.path / "summary.json").read_text())["styles"]["easy"]["acceptance"]
    assert set(found) == {"num_source_tokens", "numbers_per_100_words", "score edu"}
    by_score = {one["from"]: one["survived_percent"] for one in found["score edu"]["bins"]}
    assert by_score == {0.0: 100.0, 1.0: 100.0, 2.0: 0.0}
    assert (found["score edu"]["mean"], found["score edu"]["survivor_mean"]) == (0.8333, 0.25)
    page = (rewrites.path / "report.html").read_text()
    assert "Which text survives" in page and "score edu" in page and "numbers per 100 words" in page
