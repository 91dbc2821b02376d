"""A study of two branches of a trunk, measured by the mean of their last checkpoints: from raw shards to the page.

It is killed in the trunk, in a branch and in a merge.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import yaml

from megatron_ext.artifacts import Artifact, is_finished, partial_folder
from megatron_ext.study.config import load_study
from megatron_ext.study.graph import build_graph
from megatron_ext.study.runner import run_nodes, write_config
from tests.cpu.saved import saved_tensors
from tests.cpu.test_training import events
from tests.cpu.test_weights import killed_while_writing
from tests.unit.tiny_chat_model import make_tiny_chat_model
from tools.verify_artifact import main as verify_artifact

pytestmark = pytest.mark.slow
ITERATION = 4 * 64
LEAVES_AT, ENDS_AT = 4, 10
SENTENCE = "o céu azul da manhã cai sobre a serra e o rio corre para longe do mar enquanto as aves dormem"
RUN = {"model": {"dtype": "float32"}, "data": {"seq_length": 64}, "optimizer": {"lr": 3e-3, "min_lr": 3e-4},
       "train": {"budget_tokens": ENDS_AT * ITERATION, "global_batch_size": 4},
       "schedule": {"style": "WSD", "warmup_iters": 2, "decay_iters": 4},
       "checkpoint": {"interval_tokens": ITERATION, "keep_last": 1}}


class Study:
    """The study file, its corpus of two shards, and its work folder."""

    def __init__(self, folder):
        self.folder, self.work, self.corpus = folder, folder / "work", folder / "corpus"
        self._write_corpus()
        blend = {name: {"rule": f"stem {rule}", "budget_tokens": 4000} for name, rule in (("high", "> 2.5"),
                                                                                          ("low", "< 2"))}
        (folder / "study.yaml").write_text(yaml.safe_dump({
            "name": "tiny", "corpus": {"path": str(self.corpus)}, "subsets": blend,
            "base_model": str(make_tiny_chat_model(folder / "model")), "run": RUN,
            "trunk": {"tokens": LEAVES_AT * ITERATION, "sources": {"high": {"fraction": 0.5}, "low": {"fill": True}}},
            "conditions": {name: {"sources": {name: {"fill": True}}} for name in ("high", "low")},
            "evaluation": {"baseline": "low", "merge_last": 2, "settings": {
                "tasks": ["tweetsentbr_greedy"], "limit": 2, "allow_sample_data": True, "max_gen_toks": 2}}}))
        self.nodes = build_graph(load_study(folder / "study.yaml", []))

    def _write_corpus(self):
        chance = random.Random(0)
        self.corpus.mkdir()
        for shard in range(2):
            rows = [{"id": f"{shard}-{row}", "text": " ".join(chance.choices(SENTENCE.split(), k=40)),
                     "stem_score": 1.0 + 2 * (row % 2), "edu_score": 1.0} for row in range(30)]
            (self.corpus / f"{shard}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))

    def output(self, name, work=None):
        return next(node for node in self.nodes if node.name == name).output(work or self.work)

    def checkpoint(self, name, iteration):
        return self.output(name) / "checkpoints" / f"iter_{iteration:07d}"

    def start(self):
        return subprocess.Popen(
            [sys.executable, "-m", "tools.run_study", str(self.folder / "study.yaml"), "--work", str(self.work)],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={**os.environ, "POETA_DATA": "", "XDG_CACHE_HOME": str(self.folder / "cache")})

    def run(self):
        process = self.start()
        output, _ = process.communicate(timeout=900)
        assert process.returncode == 0, output
        return output

    def kill_in(self, run):
        """kill -9 after the first checkpoint of a run."""
        process = self.start()
        deadline = time.monotonic() + 300
        while not (self.output(run) / "checkpoints" / "latest").exists() and time.monotonic() < deadline:
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=60)
        assert (self.output(run) / "checkpoints" / "latest").exists()
        assert not is_finished(self.output(run))

    def kill_merge(self, name):
        """kill -9 within the first tensors."""
        node = next(node for node in self.nodes if node.name == name)
        killed_while_writing(node.program.removeprefix("tools."), 20_000, "--config", write_config(node, self.work),
                             "--output", node.output(self.work))
        assert list(partial_folder(node.output(self.work)).iterdir())


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    return Study(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def finished(study):
    study.kill_in("run/trunk/seed0")
    study.kill_in("run/high/seed0")
    runs = [node for node in study.nodes if node.stage == "run"]
    assert run_nodes(runs, study.work).require_all().num_run == 2
    study.kill_merge("merge/high/seed0")
    return study.run()


def test_a_killed_study_goes_on_and_comes_to_the_same_content(study, finished, tmp_path):
    assert "merge/high/seed0: tools.merge_checkpoints" in finished
    for stage in ("model", "select", "tokenize", "import"):
        shutil.copytree(study.work / stage, tmp_path / stage)
    again = [node for node in study.nodes if node.stage in ("run", "merge")]
    assert run_nodes(again, tmp_path).require_all().num_run == 5
    for node in again:
        here, there = Artifact.open(node.output(study.work)), Artifact.open(node.output(tmp_path))
        assert here.content_hash == there.content_hash, node.name
        assert here.counts["changes"] == []
    assert not list(study.work.rglob("*.partial"))


def test_branches_go_on_from_the_same_checkpoint_at_their_own_learning_rates(study, finished):
    left = Artifact.open(study.checkpoint("run/trunk/seed0", LEAVES_AT)).content_hash
    for name in ("run/high/seed0", "run/low/seed0"):
        run = study.output(name)
        rows = events(run, "train")
        assert [row["iteration"] for row in rows] == list(range(LEAVES_AT + 1, ENDS_AT + 1))
        assert [row["lr"] for row in rows] == pytest.approx(
            [3e-4 + 2.7e-3 * share for share in (1, 1, 0.75, 0.5, 0.25, 0)], rel=1e-12)
        assert Artifact.open(run).manifest["request"]["inputs"]["trunk"]["content_hash"] == left


def test_the_mean_is_of_the_checkpoints_that_were_kept_for_it(study, finished):
    """`keep_last: 1` alone would have removed all but the last."""
    for name in ("high/seed0", "low/seed0"):
        parents = [study.checkpoint(f"run/{name}", iteration) for iteration in (ENDS_AT - 1, ENDS_AT)]
        first, last = map(saved_tensors, parents)
        for tensor_name, tensor in saved_tensors(study.output(f"merge/{name}")).items():
            assert tensor.equal(((first[tensor_name].double() + last[tensor_name].double()) / 2).float()), tensor_name
        merged = Artifact.open(study.output(f"merge/{name}"))
        noted = [one["content_hash"] for one in merged.manifest["request"]["inputs"].values()]
        assert noted == [Artifact.open(parent).content_hash for parent in parents]
        exported = Artifact.open(study.output(f"export/{name}"))
        assert exported.manifest["request"]["inputs"]["checkpoint"]["content_hash"] == merged.content_hash
        assert exported.counts["parity"]["passed"]


def test_the_page_tells_of_trunk_and_mean(study, finished):
    [report] = (study.work / "report").iterdir()
    numbers = json.loads((report / "report.json").read_text())
    notes = " ".join(numbers["notes"])
    assert f"All conditions leave one trunk after {LEAVES_AT * ITERATION:,} tokens: they are not independent" in notes
    assert "The spread between seeds is that of the branches given this trunk" in notes
    assert "Evaluated on the mean of the last 2 checkpoints of each run" in notes
    training = numbers["training"]
    assert training["contract"]["differing"] == []
    assert training["trunk"]["tokens"] == LEAVES_AT * ITERATION
    assert {part["source"]: part["percent"] for part in training["trunk"]["parts"]} == {"high": 50, "low": 50}
    for curves in training["curves"].values():
        assert curves[0]["train"]["tokens"] == [ITERATION * count for count in range(1, ENDS_AT + 1)]
    page = (report / "report.html").read_text()
    assert f"the first {LEAVES_AT * ITERATION:,} of them are the trunk&#39;s" in page or (
        f"the first {LEAVES_AT * ITERATION:,} of them are the trunk's" in page)
    for name in ("run/trunk", "merge/high"):
        assert re.search(rf"{name}/seed0-[0-9a-f]{{8}}", page)
    comparison = json.loads((study.output("compare/conditions") / "comparison.json").read_text())
    assert set(comparison["conditions"]) == {"base", "high", "low"}


def test_a_second_run_does_nothing(study, finished):
    assert run_nodes(study.nodes, study.work).require_all().num_run == 0


def test_the_chain_leads_through_mean_and_trunk_to_the_raw_shards(study, finished, capsys):
    [report] = (study.work / "report").iterdir()
    arguments = [str(report), "--raw", str(study.corpus), "--raw", str(study.folder / "model")]
    assert verify_artifact(arguments) == 0
    told = capsys.readouterr().out
    assert "not checked" not in told
    assert str(study.checkpoint("run/trunk/seed0", LEAVES_AT).relative_to(study.work)) in told
    shard = study.corpus / "1.jsonl"
    intact = shard.read_bytes()
    shard.write_bytes(intact.replace(b"serra", b"serrA", 1))
    assert verify_artifact(arguments) == 1
    shard.write_bytes(intact)


def test_a_trunk_of_which_a_byte_changed_is_refused_by_name(study, finished, capsys):
    [report] = (study.work / "report").iterdir()
    weights = next(study.checkpoint("run/trunk/seed0", LEAVES_AT).glob("*.distcp"))
    intact = weights.read_bytes()
    weights.write_bytes(intact[:-1] + bytes([intact[-1] ^ 1]))
    try:
        assert verify_artifact([str(report), "--raw", str(study.corpus)]) == 1
        assert f"BROKEN: {weights}" in capsys.readouterr().out
        [branch] = [node for node in study.nodes if node.name == "run/low/seed0"]
        assert str(weights) in run_nodes([branch], study.work).failures["run/low/seed0"]
    finally:
        weights.write_bytes(intact)
