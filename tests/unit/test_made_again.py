"""The plan says what is done, what goes on from where, and what is made again because of which setting."""

import json
from pathlib import Path

import pytest
import yaml

from megatron_ext.artifacts import produce, publish_in_place
from megatron_ext.study.config import load_study
from megatron_ext.study.graph import build_graph
from megatron_ext.study.runner import input_folders, write_config
from tools import run_study

BASE = Path("examples/base/smollm2_135m_cpu.yaml")
NEEDS_CHECKPOINTS = "checkpoints/iter_{:07d}"


@pytest.fixture
def study(tmp_path):
    (tmp_path / "corpus").mkdir()
    row = {"id": "1", "text": "olá", "stem_score": 3.0, "edu_score": 3.0}
    (tmp_path / "corpus" / "a.jsonl").write_text(json.dumps(row) + "\n")
    values = yaml.safe_load(Path("examples/quickstart/study.yaml").read_text()) | {"run_file": str(BASE.absolute())}
    values["validation"]["neutral"] = str(Path("examples/quickstart/neutral").absolute())
    values["corpus"]["path"] = str(tmp_path / "corpus")
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(values))
    return tmp_path / "study.yaml"


COUNTS = {"tokens": 20_000, "num_parameters": 134_515_008, "vocab_size": 10, "train": {"tokens": 17_000},
          "valid": {"tokens": 3_000}}


def finish(study, work, *overrides):
    """Every stage of a study as an artifact of its kind, as if it had been run."""
    nodes = build_graph(load_study(study, list(overrides)))
    for node in nodes:
        write_config(node, work)
        folder = node.output(work)
        if node.kind == "run":
            for export in (one for one in nodes if one.stage == "export" and one.parents[0].identity == node.identity):
                place = folder / export.inputs["checkpoint"].folder
                place.mkdir(parents=True)
                publish_in_place(place, kind="checkpoint", settings={}, inputs={}, counts={})
            publish_in_place(folder, kind="run", settings={"run": {}}, inputs={}, counts=COUNTS)
        else:
            inputs = {str(number): place for number, place in enumerate(input_folders(node, work))}
            produce(folder, kind=node.kind, settings={}, inputs=inputs, make=writes(node))
    return {node.name: node.output(work) for node in nodes}


def writes(node):
    def make(folder):
        (folder / "content").write_text(node.name)
        if node.stage == "model":
            (folder / "config.json").write_text(json.dumps({
                "architectures": ["LlamaForCausalLM"], "vocab_size": 49152, "hidden_size": 576,
                "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
                "max_position_embeddings": 8192}))
        return COUNTS

    return make


def planned(capsys, study, work, *overrides):
    assert run_study.main([str(study), "--work", str(work), "--dry-run", *overrides]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def test_a_finished_study_has_nothing_to_do(study, tmp_path, capsys):
    finish(study, tmp_path / "work")
    told = planned(capsys, study, tmp_path / "work")
    assert "made again" not in told
    assert "(0.0 of them still to do)" in told


CHANGES = {
    "a budget": ("subsets.high.budget_tokens=30000", "select/high", "budget_tokens: 20000 is now 30000"),
    "a rule": ("subsets.low.rule=stem < 1", "select/low", "is now 'stem < 1'"),
    "a sampling": ("rewriter.settings.sampling.temperature=0.5", "rewrite/high",
                   "sampling.temperature: 0.3 is now 0.5"),
    "a rate": ("run.optimizer.lr=2e-4", "run/high/seed0", "optimizer.lr: 0.0001 is now 0.0002"),
    "a limit": ("evaluation.settings.limit=8", "evaluate/base", "limit: 4 is now 8"),
    "a blend": ("conditions.high_with_rewrites.sources.high_rewrites.epochs=2", "run/high_with_rewrites/seed0",
                "data.sources.high_rewrites.epochs: 1.0 is now 2.0"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_made_again_is_told_with_the_setting_and_the_folder(name, study, tmp_path, capsys):
    override, stage, change = CHANGES[name]
    before = finish(study, tmp_path / "work")
    lines = [line for line in planned(capsys, study, tmp_path / "work", override).splitlines() if "made again" in line]
    [line] = [line for line in lines if line.startswith(f"{stage} is made again")]
    assert str(before[stage]) in line
    assert change in line


def test_what_follows_is_told_by_its_inputs(study, tmp_path, capsys):
    finish(study, tmp_path / "work")
    told = planned(capsys, study, tmp_path / "work", "subsets.high.budget_tokens=30000")
    [line] = [line for line in told.splitlines() if line.startswith("tokenize/high is made again")]
    assert "input documents: select/high-" in line
    assert "select/low is made again" not in told


def test_other_bytes_of_the_corpus_are_told(study, tmp_path, capsys):
    finish(study, tmp_path / "work")
    with open(tmp_path / "corpus" / "a.jsonl", "a") as file:
        file.write(json.dumps({"id": "2", "text": "oi", "stem_score": 1.0, "edu_score": 1.0}) + "\n")
    told = planned(capsys, study, tmp_path / "work")
    [line] = [line for line in told.splitlines() if line.startswith("select/high is made again")]
    assert f"the bytes of corpus ({tmp_path / 'corpus'}) have changed" in line


def test_what_goes_on_says_from_where(study, tmp_path, capsys):
    work = tmp_path / "work"
    nodes = {node.name: node for node in build_graph(load_study(study, []))}
    run = nodes["run/high/seed0"].output(work)
    for iteration in (4, 6):
        (run / NEEDS_CHECKPOINTS.format(iteration)).mkdir(parents=True)
    partial = nodes["rewrite/high"].output(work).with_name(nodes["rewrite/high"].output(work).name + ".partial")
    partial.mkdir(parents=True)
    parts = nodes["tokenize/low"].output(work).with_name(nodes["tokenize/low"].output(work).name + ".parts")
    for number in range(3):
        produce(parts / f"{number}-of-4", kind="tokenized_part", settings={}, inputs={}, make=lambda folder: {})
    (parts / "3-of-4").mkdir()
    told = planned(capsys, study, work)
    assert "run/high/seed0 goes on after iteration 6" in told
    assert f"rewrite/high goes on with what is in {partial}" in told
    assert "tokenize/low goes on: 3 of 4 parts are finished" in told


def test_the_plan_of_a_finished_study_of_a_hundred_stages_has_nothing_to_do(study, tmp_path, capsys):
    seeds = "seeds=[0, 1, 2, 3, 4, 5, 6, 7]"
    assert len(finish(study, tmp_path / "work", seeds)) >= 100
    told = planned(capsys, study, tmp_path / "work", seeds)
    assert "(0.0 of them still to do)" in told
