import json
import re
import shutil
from html.parser import HTMLParser

import pytest
import yaml

from evaluation.poeta import task_names
from evaluation.report.cost import cost_section
from evaluation.report.curves import PAPER_TABLE_1, peaks_table
from evaluation.report.data import rewriting_section
from evaluation.report.page import ReportSettings, gather, render, write_report
from evaluation.report.plots import short_count
from evaluation.report.record import StudyRecord
from evaluation.report.scales import nice_scale
from evaluation.report.training import training_section
from megatron_ext.artifacts import Artifact, produce, write_json
from megatron_ext.contents import content_hash, hash_json
from megatron_ext.errors import UserError
from megatron_ext.hashing import hash_file
from megatron_ext.lineage import Places, verify
from tests.unit.simulated_study import write_study

NOTE = "The rewriter is a stand-in <b>."
VOID = {"meta", "br", "link", "img", "path", "use", "rect", "circle", "line"}


class Page(HTMLParser):
    """Collects tags, ids and text, and asserts that elements are closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.ids, self.links, self.texts = [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        values = dict(attributes)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [values[key] for key in ("href", "src", "xlink:href") if key in values]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    write_study(folder, num_items=60, notes=[NOTE])
    return folder


@pytest.fixture(scope="module")
def report(study):
    return write_report(ReportSettings(study=study / "study.json"), study / "report")


@pytest.fixture(scope="module")
def page(report):
    return Page((report.path / "report.html").read_text())


@pytest.fixture
def record(study):
    """A record of the study whose values a test may change."""
    return StudyRecord.read(study / "study.json")


def test_the_page_is_one_file_that_needs_nothing_from_elsewhere(report, page):
    html = (report.path / "report.html").read_text()
    assert "script" not in page.tags
    within = [link for link in page.links if not link.startswith("data:text/csv;")]
    assert all(link.startswith("#") for link in within)
    assert not re.search(r"@import|url\((?!#)", html)
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in within} <= set(page.ids)


def test_verdict_and_numbers_are_those_of_the_comparison(study, page):
    comparison = json.loads((study / "compare" / "comparison.json").read_text())
    text = page.text.replace("\N{NO-BREAK SPACE}", " ")
    for one in [one for one in comparison["differences"] if one["family"] == "baseline"]:
        sentence = one["verdict"].replace("high_with_rewrites", "high with rewrites")
        sentence = sentence.replace("low_with_rewrites", "low with rewrites")
        assert sentence[1:] in text
    for one in comparison["conditions"].values():
        assert f"{one['npm']['all']['value']:.1f}" in text


def test_every_part_of_the_study_is_there(page):
    for heading in ("PoETa V2 score", "Differences", "What differed, and what did not", "Losses", "Selection",
                    "Rewriting", "Parity: the same model in both formats", "Time and cost",
                    "Along training", "Chain of custody", "Software"):
        assert heading in page.texts
    assert NOTE in page.texts
    assert "Everything else was equal" in page.texts
    assert page.tags.count("figure") == 4
    assert "Left out" not in page.text


def test_report_json_holds_the_numbers_of_the_page(report):
    numbers = json.loads((report.path / "report.json").read_text())
    assert [one["condition"] for one in numbers["training"]["blends"]] == ["high", "high with rewrites", "low",
                                                                            "low with rewrites"]
    rows = {row["condition"]: row["sources"]["high"]["nats_per_token"] for row in numbers["training"]["losses"]["rows"]}
    assert all(loss["after"] < loss["before"] for loss in rows.values())
    making = json.loads((report.path / "making.json").read_text())
    assert making["cost"]["stages"][-1]["num_nodes"] == 1
    assert not {"cost", "software", "chain"} & numbers.keys()


def test_equal_inputs_give_equal_bytes(study, report, tmp_path):
    again = write_report(ReportSettings(study=study / "study.json"), tmp_path / "again")
    assert again.content_hash == report.content_hash


def test_the_report_is_the_end_of_an_unbroken_chain(study, report):
    raw = [study / "corpus", study / "corpus" / "part-0.jsonl"]
    result = verify(Artifact.of_manifest(report.path), Places([study], raw))
    assert result.problems == result.unchecked == []
    kinds = {step.artifact.kind for step in result.steps}
    assert {"report", "comparison", "evaluation", "hf_model", "checkpoint", "run", "tokenized", "rewrites",
            "selection"} == kinds


def test_what_is_missing_is_left_out_and_said(tmp_path, study):
    values = json.loads((study / "study.json").read_text())
    (tmp_path / "study.json").write_text(json.dumps({"name": values["name"], "comparison": "nowhere"}))
    numbers = gather(StudyRecord.read(tmp_path / "study.json"))
    page = Page(render(numbers))
    assert "no verdict" in page.text
    for word in ("Differences", "Losses", "Selection", "Chain of custody"):
        assert word not in page.texts
    assert len(numbers["missing"]) == 6


def test_a_run_that_differs_in_more_than_data_is_shown(study, tmp_path):
    shutil.copytree(study, tmp_path / "study")
    config = tmp_path / "study" / "run" / "low" / "seed1" / "config.yaml"
    values = yaml.safe_load(config.read_text())
    values["optimizer"]["lr"] = 3e-4
    config.write_text(yaml.safe_dump(values))
    manifest = config.parent / "manifest.json"
    stored = json.loads(manifest.read_text())
    stored["files"]["config.yaml"] |= {"bytes": config.stat().st_size, "sha256": hash_file(config)}
    stored |= {"content_hash": content_hash(stored["files"])}
    del stored["manifest_hash"]
    stored["manifest_hash"] = hash_json(stored)
    manifest.write_text(json.dumps(stored))
    contract = training_section(StudyRecord.read(tmp_path / "study" / "study.json"))["contract"]
    [difference] = contract["differing"]
    assert difference["key"] == "optimizer.lr"
    assert difference["values"].endswith("0.0003 in low #2")
    assert not difference["is_allowed"]


def test_the_papers_table_is_shown_beside_all_44_official_tasks_alone(record):
    numbers = gather(record)
    assert numbers["results"]["peaks"]["sizes"] == []
    assert "2603.24826" not in render(numbers)
    comparison = record.comparison() | {"tasks": [{"name": name} for name in task_names()]}
    assert peaks_table(comparison | {"profile": "clean"})["sizes"] == []
    assert peaks_table(comparison | {"deviations": ["at most 4 examples a task"]})["sizes"] == []
    numbers["results"]["peaks"] = peaks_table(comparison)
    text = Page(render(numbers)).text
    assert "2603.24826" in text
    for npm, tokens in (row.values() for row in PAPER_TABLE_1.values()):
        assert f"{npm[0]:.1f} at {npm[1]}" in text and f"{tokens[0]:.1f} at {tokens[1]}" in text


def test_peaks_are_the_best_points_of_the_curves(record):
    comparison = record.comparison()
    for row, (name, points) in zip(peaks_table(comparison)["rows"][1:], comparison["curves"].items(), strict=True):
        best = max(points, key=lambda point: point["npm"]["value"])
        assert (row["label"], row["peak_tokens"]) == (name.replace("_", " "), best["tokens"])
        assert row["peak"]["value"] == best["npm"]["value"] >= comparison["conditions"][name]["npm"]["all"]["value"]


def test_contamination_is_told_where_it_was_measured(page):
    assert ("Contamination of high: 32 of 2,488 test items found in 17 documents "
            "Shared runs of 13 words; such documents were reported and kept.") in page.text
    assert "Contamination of low" not in page.text


def test_cost_in_gpu_hours_and_what_one_buys(record):
    comparison = record.comparison()
    cost = cost_section(record, comparison)
    run = next(one for one in cost["stages"] if one["name"] == "run")
    assert run["gpu_hours"] == pytest.approx(4 * 3 * 171 * 2 / 3600)
    assert next(one for one in cost["stages"] if one["name"] == "compare")["gpu_hours"] == 0
    gains = {one["condition"]: one for one in cost["gains"]}
    npm = {name: one["npm"]["all"]["value"] for name, one in comparison["conditions"].items()}
    hours = 171 * 2 / 3600
    assert gains["high"]["gain_per_hour"] == pytest.approx((npm["high"] - npm["base"]) / hours)
    assert gains["high with rewrites"]["rewriting_hours"] == pytest.approx(148 / 3600)
    assert gains["high with rewrites"]["gain_per_hour"] == pytest.approx(
        (npm["high_with_rewrites"] - npm["base"]) / (hours + 148 / 3600))


def test_categories_and_what_was_matched_are_shown(page):
    assert "exams and culture" in page.texts
    assert "Conditions are matched by tokens : every run saw equally many tokens." in page.text
    assert "Holm's method over all categories" in page.text


def test_examples_of_rewrites_show_kept_and_rejected_ones_of_different_styles(record):
    pairs = rewriting_section(record)["pairs"]
    assert [pair["is_accepted"] for pair in pairs] == [True, False, True, False]
    assert len({pair["style"] for pair in pairs}) == 4
    assert all(pair["reasons"] == ([] if pair["is_accepted"] else ["wrong language"]) for pair in pairs)


def test_it_is_told_which_text_survives(record, page):
    styles = rewriting_section(record)["subsets"][0]["styles"]
    assert [one["property"] for one in styles[0]["acceptance"]] == ["tokens of the source"]
    assert "Which text survives" in page.text and "151 to 350: 68 % of 60" in page.text


@pytest.mark.parametrize("source, survived, sources, told", [
    ("high", 12, ["high"], "12 of 120 in style “qa”. The rewrites are of a choice"),
    ("high", 12, ["high", "high_rewritten_originals"], ""), ("high", 0, ["high"], ""), ("high", 63, ["high"], ""),
    ("high_by_small", 12, ["high"], "holds their originals (high_by_small_originals)"),
    ("high_by_small", 12, ["high", "high_by_small_originals"], "")])
def test_few_survivors_are_a_caveat_where_no_condition_holds_their_originals(record, tmp_path, source, survived,
                                                                            sources, told):
    made = record.named("rewrites")["high"]
    summary = json.loads((made.path / "summary.json").read_text())
    summary["styles"]["qa"]["num_survived"] = survived

    def make(partial):
        shutil.copytree(made.path / "chunks", partial / "chunks")
        write_json(partial / "summary.json", summary)
        return made.counts

    tokenized = record.values["tokenized"]["high"]
    record.values["rewrites"] = {source: produce(tmp_path / "few", kind="rewrites", settings=made.settings, inputs={},
                                                 make=make).path}
    record.values["tokenized"] = dict.fromkeys(sources, tokenized)
    caveats = rewriting_section(record)["caveats"]
    assert len(caveats) == bool(told) and all(told in caveat for caveat in caveats)


def test_text_from_the_study_cannot_become_markup(record):
    record.values["description"] = "<script>alert(1)</script>"
    page = Page(render(gather(record)))
    assert "script" not in page.tags
    assert "<script>alert(1)</script>" in page.text


def test_a_damaged_artifact_is_no_part_of_a_report(study, tmp_path):
    shutil.copytree(study, tmp_path / "study")
    (tmp_path / "study" / "compare" / "comparison.json").write_text("{}")
    with pytest.raises(UserError, match=r"comparison.json has 2 bytes"):
        write_report(ReportSettings(study=tmp_path / "study" / "study.json"), tmp_path / "page")


@pytest.mark.parametrize(("content", "message"), [(None, "cannot be read"), ("{", "is no JSON"), ("[]", "no record")])
def test_a_record_that_is_none_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "study.json").write_text(content)
    with pytest.raises(UserError, match=message):
        StudyRecord.read(tmp_path / "study.json")


def test_inputs_of_the_report_are_all_artifacts_of_the_study(report):
    inputs = Artifact.open(report.path, kind="report").manifest["request"]["inputs"]
    assert len(inputs) == 1 + 1 + 2 + 2 + 2 + 4 + 4 * 3 * 3


@pytest.mark.parametrize(("values", "ends"), [([3.1, 41.2], (0, 50)), ([-3.1, 4.2], (-4, 6)), ([0.0], (-1, 1)),
                                             ([], (-1, 1)), ([None, 98.0, float("nan")], (0, 100))])
def test_scales_have_round_ends_around_all_values(values, ends):
    scale = nice_scale(values, [0.0])
    known = [value for value in values if value == value and value is not None]
    assert all(scale.low <= value <= scale.high for value in known)
    assert scale.low == scale.ticks[0] and scale.high == scale.ticks[-1]
    assert len(scale.ticks) <= 8
    assert (scale.low, scale.high) == ends


def test_counts_are_told_short():
    assert [short_count(value) for value in (0, 950, 38_400, 10e6, 40e9)] == ["0", "950", "38.4k", "10M", "40B"]
