"""tools.submit_study on a real cluster: the graph of run_study as jobs over two nodes, and what it refuses."""

import json
import os
import subprocess
import sys
import time

import pytest
import yaml

from megatron_ext.artifacts import Artifact
from tests.slurm.cluster import ROOT
from tests.study.test_whole_study import study_values
from tests.unit.tiny_chat_model import make_tiny_chat_model

pytestmark = pytest.mark.slow


class Study:
    """A tiny study, its work folder, and submit_study on the login node."""

    def __init__(self, cluster, folder):
        self.cluster, self.folder, self.work = cluster, folder, folder / "work"
        values = study_values(make_tiny_chat_model(folder / "tiny"))
        values["run"]["train"]["budget_tokens"] = 8 * 4 * 64
        values["run"]["parallel"]["tensor_model_parallel_size"] = 2  # inside a node; the pipeline goes across nodes
        values["evaluation"]["checkpoints"] = [4 * 4 * 64]
        (folder / "study.yaml").write_text(yaml.safe_dump(values))

    def submit(self, *arguments, **environment):
        """Exit code and output of submit_study."""
        environment = {"XDG_CACHE_HOME": self.folder / "cache", **environment}
        done = self.cluster.run(sys.executable, "-m", "tools.submit_study", self.folder / "study.yaml", "--work",
                                self.work, *arguments, check=False, **environment)
        return done.returncode, done.stdout + done.stderr

    def queue(self):
        """Ids and states of the jobs that Slurm still has."""
        return self.cluster.run("squeue", "--noheader", "--array", "--format=%i %j %T %r").stdout.splitlines()

    def wait(self, timeout_seconds):
        """Wait until no job is left."""
        deadline = time.monotonic() + timeout_seconds
        while queue := self.queue():
            assert time.monotonic() < deadline, "\n".join([*queue, self.submit("--status")[1]])
            time.sleep(0.2)

    def wait_for(self, condition):
        """Poll for a minute or two."""
        deadline = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < deadline, "\n".join(self.queue())
            time.sleep(0.1)

    def ids(self, output):
        """Job id by name, as submit_study printed them."""
        lines = [line.split(None, 1) for line in output.splitlines() if line[:1].isdigit()]
        return {rest.split(" (")[0]: job_id for job_id, rest in lines}

    def one(self, pattern):
        (found,) = self.work.glob(pattern)
        return found


@pytest.fixture(scope="module")
def study(cluster, tmp_path_factory):
    return Study(cluster, tmp_path_factory.mktemp("study"))


def numbers(work):
    """What a report rests on: losses of each run, scores of each model, the comparison."""
    def rows(path):
        kept = ("event", "iteration", "loss", "grad_norm", "sources")
        found = [json.loads(line) for line in path.read_text().splitlines()]
        return [{key: row[key] for key in kept if key in row} for row in found if row["event"] != "checkpoint"]

    files = {str(path.relative_to(work)): rows(path) for path in work.glob("run/*/*/metrics.jsonl")}
    for pattern in ("compare/*/comparison.json", "evaluate/**/results.json", "run/*/*/exposure.json"):
        files |= {str(path.relative_to(work)): json.loads(path.read_text()) for path in work.glob(pattern)}
    return files


def test_jobs_over_two_nodes_give_the_report_of_one_machine(study):
    site = study.cluster.write_site("two.env", PROCESSES_PER_NODE=2, POLL_SECONDS=1)
    code, output = study.submit(SITE=site)
    assert code == 0, output
    reference = start_on_one_core(study)
    study.wait(1200)
    code, status = study.submit("--status", SITE=site)
    failed = {line.split()[0] for line in status.splitlines() if " failed " in line}
    assert code == 1
    assert all("/high_with_rewrites/" in name or name == "report/tiny" for name in failed), status
    assert "high_rewrites" in status  # why
    output, _ = reference.communicate(timeout=1800)
    assert reference.returncode == 0, output
    here, there = numbers(study.folder / "here"), numbers(study.work)
    assert len(here) == 10  # two runs with their exposure, five evaluations, one comparison
    assert there == here
    report = study.one("report/tiny-*/report.html")
    assert "high_with_rewrites" in report.read_text()
    log = study.one("logs/run.low.seed0-*.log").read_text()
    assert ", 2 processes each" in log
    assert "0: " in log
    assert "1: " in log  # srun's labels of two nodes
    (provenance, *_) = study.work.glob("provenance/*")
    assert {"script", "commit", "packages", "environment"} <= {path.name for path in provenance.iterdir()}
    early = study.one("logs/export.low.seed0.iter_0000004-*.log").read_text()
    assert "tools.export_hf" in early  # a job of its own; on a busy cluster it starts after the checkpoint is there
    comparison = json.loads(study.one("compare/conditions-*/comparison.json").read_text())
    assert comparison["missing"] == ["high_with_rewrites"]
    assert "high_with_rewrites" in "".join(comparison["caveats"])


def test_once_a_failed_arm_is_mended_the_comparison_is_made_again(study):
    """Its condition gets text that there is."""
    site = study.cluster.write_site("two.env", PROCESSES_PER_NODE=2, POLL_SECONDS=1)
    mend = "conditions.high_with_rewrites.sources={high: {fill: true}, low: {fraction: 0.5}}"
    code, output = study.submit(mend, SITE=site)
    assert code == 0, output
    assert "run/low/seed0" not in output
    study.wait(900)
    code, status = study.submit("--status", mend, SITE=site)
    assert code == 0, status
    comparisons = [json.loads(path.read_text()) for path in study.work.glob("compare/conditions-*/comparison.json")]
    assert sorted(one["missing"] for one in comparisons) == [[], ["high_with_rewrites"]]
    assert len(list(study.work.glob("report/tiny-*"))) == 2
    code, again = study.submit(mend, SITE=site)
    assert (code, again.splitlines()[-1]) == (0, "nothing to submit")


def start_on_one_core(study):
    """run_study with one thread a process, as the jobs have, beside them."""
    core = str(min(os.sched_getaffinity(0)))
    return subprocess.Popen(
        ["taskset", "--cpu-list", core, sys.executable, "-m", "tools.run_study", str(study.folder / "study.yaml"),
         "--work", str(study.folder / "here")], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "XDG_CACHE_HOME": str(study.folder / "cache")})


def test_a_failed_stage_leaves_no_dependents_pending_and_its_error_is_told(study):
    code, output = study.submit("corpus.scores={stem: stem_rating, edu: edu_score}")
    assert code == 2  # a plan can know this; not so how many tokens will pass
    assert "has no column 'stem_rating'" in output
    code, output = study.submit("subsets.high.budget_tokens=2000000")
    assert code == 0, output
    study.wait(300)
    code, status = study.submit("--status", "subsets.high.budget_tokens=2000000")
    assert code == 1
    (line,) = (line for line in status.splitlines() if line.startswith("select/high "))
    assert "failed" in line
    assert "on_shortage" in line
    assert "what it waits for is not finished" in status


def test_each_script_is_usable_alone(study, cluster, tmp_path):
    """An array that tokenizes in two parts, and the job that merges them."""
    settings = ["--output", tmp_path / "tokens", f"documents={ROOT / 'examples/quickstart/corpus'}",
                f"tokenizer={study.folder / 'tiny'}", "workers=1"]
    array = cluster.submit("--array=0-1", "slurm/tokenize.sbatch", *settings)
    merge = cluster.submit(f"--dependency=afterok:{array}", "--kill-on-invalid-dep=yes", "slurm/merge.sbatch",
                           "tools.tokenize_corpus", "2", *settings)
    assert cluster.wait(merge, 180) == "COMPLETED", cluster.log(merge).read_text()
    for part in ("0-of-2", "1-of-2"):  # the last task of an array has the array's own id
        assert Artifact.open(tmp_path / "tokens.parts" / part, kind="tokenized_part")
    assert Artifact.open(tmp_path / "tokens", kind="tokenized").counts["train"]["documents"] > 100


def test_of_an_array_only_the_killed_tasks_run_again(study):
    values = ["jobs.rewrite.parts=8", "jobs.rewrite.options=[--cpus-per-task=2]", "rewriter.settings.max_documents=8",
              "rewriter.settings.styles=[easy]", "rewriter.settings.batch_size=1"]
    code, output = study.submit(*values)
    assert code == 0, output
    array = study.ids(output)["rewrite/high parts"]
    for task in (2, 5):
        study.wait_for(lambda task=task: list(study.work.glob(f"logs/*.{array}_{task}.log")))
        study.cluster.run("scancel", f"{array}_{task}")
    study.wait(600)
    code, status = study.submit("--status", *values)
    assert code == 1
    assert "2 of 8 parts" in status
    parts = study.one("rewrite/high-*.parts")
    made = {part.name: (part / "manifest.json").stat().st_mtime_ns for part in parts.glob("?-of-8")}
    assert sorted(made) == [f"{part}-of-8" for part in (0, 1, 3, 4, 6, 7)]

    code, output = study.submit(*values)
    assert code == 0, output
    assert "rewrite/high parts (parts 2, 5)" in output
    merge = study.ids(output)["rewrite/high"]
    assert study.cluster.wait(merge, 300) == "COMPLETED", study.submit("--status", *values)[1]
    assert {name: (parts / name / "manifest.json").stat().st_mtime_ns for name in made} == made
    assert len(list(study.work.glob(f"logs/*.{study.ids(output)['rewrite/high parts']}_*.log"))) == 2
    study.cluster.run("scancel", "--user", "root")
    study.wait(60)


@pytest.mark.parametrize(("arguments", "site", "reason"), [
    (["jobs.run.options=[--gres=gpu:9]"], {}, "Requested node configuration is not available"),
    (["jobs.rewrite.gpus=9"], {"GPUS_PER_NODE": 8}, "jobs.rewrite.gpus = 9: a node has 8 GPUs"),
    ([], {"CONTAINER_IMAGE": "/nowhere/image.sqsh"}, "/nowhere/image.sqsh"),
    ([], {"SCRATCH": "/proc/scratch"}, "the scratch folder /proc/scratch cannot be written"),
    (["conditions.low.overrides={optimizer.lr: 0.5}"], {}, "optimizer.lr = 0.5 differs from the other conditions"),
])
def test_what_cannot_run_is_refused_before_a_job_starts(study, tmp_path, arguments, site, reason):
    """In a work folder of its own: in the shared one other tests may have finished the jobs in question."""
    site = study.cluster.write_site("other.env", **site)
    code, output = study.submit("--work", tmp_path, *arguments, SITE=site)
    assert code == 2
    assert reason in output
    assert "Traceback" not in output
    assert study.queue() == []
