"""tools.clean finds what no study uses, tells its size, and deletes nothing that is used, held or older."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from megatron_ext.artifacts import produce
from megatron_ext.lease import lease
from megatron_ext.study.config import load_study
from megatron_ext.study.graph import build_graph
from megatron_ext.study.reporting import keep_study
from megatron_ext.study.runner import input_folders
from tools import clean


@pytest.fixture
def study(tmp_path):
    (tmp_path / "corpus").mkdir()
    row = {"id": "1", "text": "olá", "stem_score": 3.0, "edu_score": 3.0}
    (tmp_path / "corpus" / "a.jsonl").write_text(json.dumps(row) + "\n")
    values = yaml.safe_load(Path("examples/quickstart/study.yaml").read_text())
    values |= {"run_file": str(Path("examples/base/smollm2_135m_cpu.yaml").absolute())}
    values["validation"]["neutral"] = str(Path("examples/quickstart/neutral").absolute())
    values["corpus"]["path"] = str(tmp_path / "corpus")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "study.yaml"


def writes(text):
    def make(folder):
        (folder / "data").write_text(text * 1000)
        return {}

    return make


def run(study, work, *overrides):
    """The data stages of a study, as if it had been run."""
    loaded = load_study(study, list(overrides))
    nodes = build_graph(loaded)
    keep_study(loaded, nodes, work)
    for node in nodes:
        if node.stage in ("model", "select", "rewrite"):
            inputs = {str(number): place for number, place in enumerate(input_folders(node, work))}
            produce(node.output(work), kind=node.kind, settings={}, inputs=inputs, make=writes(node.name))
    return {node.name: node.output(work) for node in nodes}


def cleaned(capsys, *arguments):
    code = clean.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out + err


def test_what_a_changed_study_no_longer_uses_can_go(study, tmp_path, capsys):
    work = tmp_path / "work"
    before, now = run(study, work), run(study, work, "subsets.high.budget_tokens=30000")
    code, told = cleaned(capsys, work)
    assert code == 0
    gone = {before[name] for name in ("select/high", "rewrite/high")}
    assert all(str(folder) in told for folder in gone)
    assert str(now["select/high"]) not in told
    assert "2 folders" in told and "--delete" in told
    assert all(folder.exists() for folder in gone)
    assert "deleted: 2 folders" in cleaned(capsys, work, "--delete")[1]
    assert not any(folder.exists() for folder in gone)
    assert all(now[name].exists() for name in ("select/high", "select/low", "rewrite/high", "model/base"))
    assert "0 folders" in cleaned(capsys, work)[1]


def test_a_named_study_counts_as_it_is_now(study, tmp_path, capsys):
    work = tmp_path / "work"
    before = run(study, work)
    told = cleaned(capsys, work, study, "subsets.low.budget_tokens=30000")[1]
    assert str(before["select/low"]) in told
    assert str(before["select/high"]) not in told


def test_what_another_study_uses_stays(study, tmp_path, capsys):
    work = tmp_path / "work"
    run(study, work)
    run(study, work, "name=another", "subsets.low.budget_tokens=30000")
    assert "0 folders" in cleaned(capsys, work)[1]


def test_unfinished_work_and_parts_of_no_study_can_go_and_held_ones_stay(study, tmp_path, capsys):
    work = tmp_path / "work"
    places = run(study, work)
    for name in ("select/old-00000000.partial", "rewrite/old-00000000.parts", "rewrite/held-00000000.partial"):
        (work / name).mkdir(parents=True)
    kept = places["tokenize/high"].with_name(places["tokenize/high"].name + ".partial")
    kept.mkdir(parents=True)
    with lease(work / "rewrite/held-00000000.lease", work / "rewrite/held-00000000"):
        told = cleaned(capsys, work, "--delete")[1]
    assert "held-00000000.partial; stays: held by process" in told
    assert (work / "rewrite/held-00000000.partial").exists()
    assert not (work / "select/old-00000000.partial").exists()
    assert not (work / "rewrite/old-00000000.parts").exists()
    assert kept.exists()


def test_what_an_older_version_has_made_stays(study, tmp_path, capsys):
    work = tmp_path / "work"
    places = run(study, work)
    older = work / "select" / "high-00000000"
    shutil.copytree(places["select/high"], older)
    manifest = json.loads((older / "manifest.json").read_text())
    manifest.pop("version")
    (older / "manifest.json").write_text(json.dumps(manifest))
    told = cleaned(capsys, work, "--delete")[1]
    assert "an older version has made it" in told
    assert older.exists()


def test_it_refuses_where_it_cannot_tell_what_is_used(study, tmp_path, capsys):
    work = tmp_path / "work"
    assert "does not exist" in cleaned(capsys, work)[1]
    work.mkdir()
    assert "remembers no study" in cleaned(capsys, work)[1]
    run(study, work)
    shutil.rmtree(tmp_path / "corpus")  # the names of the folders follow from its bytes
    code, told = cleaned(capsys, work, study, "--delete")
    assert code == 2
    assert "cannot be told without it" in told
    assert "0 folders" in cleaned(capsys, work)[1]  # what was used last is remembered
