"""A trunk and two branches as a study runs them: data and model are made, the runs are real."""

import pytest
import yaml

from megatron_ext.artifacts import Artifact, produce
from megatron_ext.lineage import Places, verify
from megatron_ext.study.config import load_study
from megatron_ext.study.graph import build_graph
from megatron_ext.study.runner import run_nodes
from tests.cpu.test_training import events
from tests.cpu.tiny import make_model, make_tokenized

pytestmark = pytest.mark.slow
ITERATION = 8 * 32
RUN = {"model": {"dtype": "float32"}, "data": {"seq_length": 32}, "optimizer": {"lr": 3e-3, "min_lr": 3e-4},
       "train": {"budget_tokens": 6 * ITERATION, "global_batch_size": 8},
       "schedule": {"style": "WSD", "warmup_iters": 2, "decay_iters": 2}}


def test_two_branches_under_a_study_file(tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"id": "1", "text": "olá", "stem_score": 3.0, "edu_score": 3.0}\n')
    subset = {"rule": "stem > 2.5", "budget_tokens": 10}
    (tmp_path / "study.yaml").write_text(yaml.safe_dump({
        "name": "tiny", "corpus": {"path": str(tmp_path / "corpus.jsonl")}, "base_model": "some/model",
        "subsets": {"high": subset, "low": {**subset, "rule": "stem < 2"}}, "run": RUN,
        "trunk": {"tokens": 4 * ITERATION, "sources": {"high": {"fraction": 0.5}, "low": {"fill": True}}},
        "conditions": {name: {"sources": {name: {"fill": True}}} for name in ("high", "low")},
        "evaluation": {"baseline": "low"}}))
    work = tmp_path / "work"
    nodes = build_graph(load_study(tmp_path / "study.yaml", []))
    _make_what_runs_read(nodes, work)
    runs = {node.name: node for node in nodes if node.stage == "run"}
    assert run_nodes(list(runs.values()), work).require_all().num_run == 3

    trunk, high, low = (node.output(work) for node in runs.values())
    for branch in (high, low):
        assert [row["iteration"] for row in events(branch, "train")] == [5, 6]
        assert [row["lr"] for row in events(branch, "train")] == pytest.approx([1.65e-3, 3e-4])
        trunk_of_it = Artifact.open(branch).manifest["request"]["inputs"]["trunk"]["content_hash"]
        assert trunk_of_it == Artifact.open(trunk / "checkpoints" / "iter_0000004").content_hash
    assert [row["loss"] for row in events(high, "train")] != [row["loss"] for row in events(low, "train")]
    assert verify(Artifact.open(high), Places([work])).problems == []
    assert run_nodes(list(runs.values()), work).require_all().num_run == 0

    weights = next((trunk / "checkpoints" / "iter_0000004").glob("*.distcp"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    failures = run_nodes([runs["run/low/seed0"]], work).failures
    assert str(weights) in failures["run/low/seed0"]


def _make_what_runs_read(nodes, work):
    for number, node in enumerate(nodes):
        if node.name == "model/base":
            make_model(node.output(work))
        elif node.stage == "tokenize":
            make_tokenized(node.output(work), number)
        elif node.stage == "import":
            produce(node.output(work), kind="parity", settings={}, inputs={}, make=lambda folder: {})
