import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml

from megatron_ext.artifacts import produce, publish_in_place
from megatron_ext.errors import UserError
from megatron_ext.manifest import write_manifest
from megatron_ext.parts import Part
from megatron_ext.study.checks import check_places, check_studies
from megatron_ext.study.config import load_study
from megatron_ext.study.jobs import plan_jobs
from megatron_ext.study.nodes import Node
from megatron_ext.study.overview import describe_cost, describe_states
from megatron_ext.study.plan import plan_studies
from megatron_ext.study.report_input import num_devices
from megatron_ext.study.reporting import keep_study
from megatron_ext.study.runner import input_folders, stage_seconds
from megatron_ext.study.site import read_site
from megatron_ext.study.status import comment, job_states, last_error, read_queue
from megatron_ext.study.submission import keep_studies, submit_jobs
from tests.unit.fake_slurm import FakeSlurm, option

CONFIG = {"architectures": ["LlamaForCausalLM"], "vocab_size": 64, "hidden_size": 32, "intermediate_size": 64,
          "num_hidden_layers": 4, "num_attention_heads": 4, "max_position_embeddings": 128}
SITE = "SBATCH_OPTIONS=(--partition=gpu)\nGPUS_PER_NODE=8\nPROCESSES_PER_NODE=\nCONTAINER_IMAGE=\nEXCLUDED_NODES=n7\n"


@pytest.fixture
def values(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.jsonl").write_text('{"id": "1", "text": "olá", "stem_score": 3.0, "edu_score": 3.0}\n')
    return {
        "name": "tiny study", "corpus": {"path": str(tmp_path / "corpus")}, "base_model": "some/model",
        "subsets": {"high": {"rule": "stem > 2.5", "budget_tokens": 1000},
                    "low": {"rule": "stem < 2", "budget_tokens": 1000}},
        "rewriter": {"model": "some/instruct", "subsets": ["high"]},
        "tokenize": {"valid_fraction": 0.0001},
        "run": {"train": {"budget_tokens": 5120, "global_batch_size": 4}, "data": {"seq_length": 64},
                "checkpoint": {"interval_tokens": 1280}},
        "data_parallel_size": 4,
        "conditions": {
            "low": {"sources": {"low": {"fill": True, "max_epochs": 6}}},
            "high": {"sources": {"high": {"fill": True, "max_epochs": 6}, "high_rewrites": {"epochs": 1}}},
        },
        "evaluation": {"baseline": "low"},
        "jobs": {"rewrite": {"parts": 8, "gpus": 2}},
        "cost": {"billion_parameters": {"some/model": 1.0, "some/instruct": 4.0}},
    }


class Setting:
    """A study, a site and a work folder, and the steps of submit_study after the models are fetched."""

    def __init__(self, folder, values, slurm):
        self.folder, self.values, self.slurm = folder, values, slurm
        self.work = folder / "work"
        (folder / "site.env").write_text(f"{SITE}SCRATCH={folder / 'scratch'}\n")

    def load(self, *overrides):
        (self.folder / "study.yaml").write_text(yaml.safe_dump(self.values))
        self.studies = plan_studies([load_study(self.folder / "study.yaml", list(overrides))])
        self.site = read_site(self.folder / "site.env")
        self.jobs = plan_jobs(self.studies, self.work, self.site)
        for node in self.studies[0].nodes:
            if node.stage == "model":
                self.finish(node, {"config.json": json.dumps(CONFIG)}, {"num_parameters": 10**9})
        return self

    def submit(self, *overrides):
        self.load(*overrides)
        check_places(self.studies, self.work, self.site)
        check_studies(self.studies, self.work)
        keep_studies(self.studies, self.jobs, self.work)
        return submit_jobs(self.jobs, self.states(), self.work, self.site)

    def states(self):
        return job_states(self.jobs, self.work, read_queue(self.work))

    def state(self, name):
        return self.states()[self.job(name).key]

    def job(self, name):
        return next(job for job in self.jobs if job.name == name)

    def node(self, name):
        return next(node for node in self.studies[0].nodes if node.name == name)

    def finish(self, node, files, counts=None):
        def make(folder):
            for name, text in files.items():
                (folder / name).write_text(text)
            return counts or {}

        inputs = {str(number): place for number, place in enumerate(input_folders(node, self.work))}
        produce(node.output(self.work), kind=node.kind, settings={}, inputs=inputs, make=make)

    def finish_part(self, name, number):
        produce(self.job(name).part(number), kind="rewrites", settings={"part": number}, inputs={},
                make=lambda folder: {})


@pytest.fixture
def setting(tmp_path, values, monkeypatch):
    return Setting(tmp_path, values, FakeSlurm(tmp_path / "slurm", monkeypatch))


def test_jobs_run_in_the_checkout_whatever_folder_they_are_submitted_from(setting, monkeypatch):
    (setting.folder / "site.env").write_text(f"source slurm/site.env\n{SITE}SCRATCH={setting.folder / 'scratch'}\n")
    monkeypatch.chdir(setting.folder)
    setting.submit()
    for call in setting.slurm.jobs.values():
        project = Path(call["environment"]["PROJECT"])
        assert (project / "slurm" / "common.sh").exists()
        assert any(word.endswith(".sbatch") and Path(word).is_file() and Path(word).is_absolute()
                   for word in call["words"])


def test_every_job_waits_for_what_it_needs_and_shared_work_is_one_job(setting):
    setting.submit("seeds=[0, 1]")
    jobs = setting.slurm.jobs
    assert len([name for name in jobs if name.startswith("select.high")]) == 1
    assert {"run.low.seed0", "run.low.seed1", "run.high.seed0", "run.high.seed1"} <= set(jobs)

    def after(name):
        given = (option(jobs[name], "dependency") or "afterok").split(":")[1:]
        return {other for other, call in jobs.items() if call["id"] in given}

    assert after("select.high") == set()
    assert after("rewrite.high-parts") == {"select.high"}
    assert after("rewrite.high") == {"rewrite.high-parts"}
    assert after("tokenize.high_rewrites") == {"rewrite.high"}
    assert after("run.high.seed1") == {"import.parity", "tokenize.high", "tokenize.high_rewrites"}
    assert after("run.low.seed1") == {"import.parity", "tokenize.low"}
    assert after("export.high.seed1") == {"run.high.seed1"}
    last = ("evaluate.", "overlap.", "validate.")
    assert after("report.tiny-study") == {name for name in jobs if name.startswith(last)}
    assert option(jobs["report.tiny-study"], "dependency").startswith("afterany:")  # a failed arm is no obstacle
    assert not any(name.startswith("compare") for name in jobs)
    assert all("--kill-on-invalid-dep=yes" in call["words"] for call in jobs.values() if option(call, "dependency"))


def test_jobs_carry_the_sites_options_and_the_layout(setting):
    setting.submit("run.parallel.tensor_model_parallel_size=4")
    run = setting.slurm.jobs["run.low.seed0"]
    assert option(run, "nodes") == "2"  # dp 4 x tp 4 on nodes of 8
    assert option(run, "gpus-per-node") == "8"
    assert {"--partition=gpu", "--exclude=n7"} <= set(run["words"])
    assert run["environment"]["NUM_PROCESSES_PER_NODE"] == "8"
    config, output = run["words"][-2:]
    assert json.loads(Path(config).read_text())["train"]["budget_tokens"] == 5120
    assert output == f"output={setting.node('run/low/seed0').output(setting.work)}"
    assert option(setting.slurm.jobs["import.parity"], "gpus-per-node") == "4"  # one model replica
    engines = setting.slurm.jobs["rewrite.high-parts"]
    assert (option(engines, "array"), option(engines, "gpus-per-node")) == ("0-7", "2")
    assert engines["environment"]["NUM_PARTS"] == "8"
    merge = setting.slurm.jobs["rewrite.high"]
    assert merge["words"][-6:-3] == ["tools.rewrite_corpus", "8", "--config"]
    assert option(merge, "gpus-per-node") is None


def test_selection_and_tokenization_are_shared_by_arrays_too(setting):
    setting.values["jobs"] |= {"select": {"parts": 3}, "tokenize": {"parts": 2}}
    setting.submit()
    for name, parts in (("select.low", 3), ("tokenize.low", 2)):
        assert option(setting.slurm.jobs[f"{name}-parts"], "array") == f"0-{parts - 1}"
        assert option(setting.slurm.jobs[name], "dependency").split(":")[1] == setting.slurm.jobs[f"{name}-parts"]["id"]


def test_context_parallel_ranks_are_processes_of_a_run_and_of_its_parity_check(setting):
    setting.load("run.parallel.context_parallel_size=2", "run.parallel.pipeline_model_parallel_size=2")
    assert setting.node("run/low/seed0").processes == 16  # dp 4 x cp 2 x pp 2
    assert setting.job("run/low/seed0").num_nodes == 2
    assert setting.node("import/parity").processes == 4


def test_submitting_again_submits_what_is_neither_finished_nor_alive(setting):
    setting.submit()
    setting.finish(setting.node("select/high"), {"a": "1"}, {"tokens": 1000})
    setting.finish(setting.node("select/low"), {"a": "2"}, {"tokens": 1000})
    alive = [name for name in setting.slurm.jobs if not name.startswith(("select", "rewrite.high-parts", "run.low"))]
    ids = {name: setting.slurm.jobs[name]["id"] for name in alive}
    keys = {job.label.rsplit("-", 1)[0]: job.key for job in setting.jobs}
    entries = [(ids[name], "PENDING", "Dependency", comment(setting.work, keys[name])) for name in alive]
    parts_key = comment(setting.work, keys["rewrite.high-parts"])
    setting.slurm.set_queue(*entries, ("77_0", "RUNNING", "None", parts_key), ("78", "RUNNING", "None", "other#x"))
    for number in (1, 2, 4, 6, 7):
        setting.finish_part("rewrite/high parts", number)
    assert setting.state("rewrite/high parts").state == "running"
    setting.slurm.forget()
    submitted = setting.submit()
    assert {one.job.name: one.parts for one in submitted} == {"rewrite/high parts": (3, 5), "run/low/seed0": ()}
    assert option(setting.slurm.jobs["rewrite.high-parts"], "array") == "3,5"
    run = option(setting.slurm.jobs["run.low.seed0"], "dependency").split(":")[1:]
    assert set(run) == {ids["import.parity"], ids["tokenize.low"]}


def test_a_job_that_waits_for_parts_alive_and_anew_waits_for_both(setting):
    setting.submit()
    parts = setting.job("rewrite/high parts")
    setting.slurm.set_queue(("77_0", "RUNNING", "None", comment(setting.work, parts.key)))
    setting.slurm.forget()
    setting.submit()
    again = setting.slurm.jobs["rewrite.high-parts"]
    assert option(again, "array") == "1-7"
    assert set(option(setting.slurm.jobs["rewrite.high"], "dependency").split(":")[1:]) == {"77", again["id"]}


def test_status_tells_why_a_job_failed(setting):
    setting.submit()
    call = setting.slurm.jobs["select.high"]
    log = Path(option(call, "output").replace("%j", call["id"]))
    log.write_text("starting\nerror: corpus: no column 'stem'; there are text, id\nsrun: error: task 0: Exited\nbye\n")
    state = setting.state("select/high")
    assert state.state == "failed"
    assert "error: corpus: no column 'stem'" in state.detail
    assert str(log) in state.detail
    assert "what it waits for is not finished" in setting.state("rewrite/high").detail
    shown = "\n".join(describe_states(setting.studies, setting.jobs, setting.states()))
    assert "select/high" in shown
    assert f"{len(setting.jobs)} failed" in shown


def test_the_error_of_a_log_is_its_last_error_line(tmp_path):
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n" for number in range(20_000)) + "error: no space\nafterwards\n\n")
    assert last_error(log) == "error: no space"
    log.write_text("a\nsrun: error: node2: task 1: Killed\n")
    assert last_error(log) == "srun: error: node2: task 1: Killed"
    log.write_text("quiet end\n")
    assert last_error(log) == "quiet end"


def test_an_input_that_changed_under_a_finished_artifact_is_noticed(setting):
    setting.load()
    node = setting.node("select/high")
    setting.finish(node, {"a": "1"})
    rewrites = setting.node("rewrite/high")
    setting.finish(rewrites, {"b": "1"})
    assert setting.state("rewrite/high").state == "done"
    assert setting.state("rewrite/high parts").state == "done"
    for file in node.output(setting.work).iterdir():
        file.unlink()
    setting.finish(node, {"a": "2"})
    with pytest.raises(UserError, match="was made from other bytes"):
        setting.states()


def refused(setting, *overrides):
    with pytest.raises(UserError) as caught:
        setting.submit(*overrides)
    assert setting.slurm.jobs == {}
    return str(caught.value)


def test_more_gpus_than_a_node_has_are_refused(setting):
    assert "jobs.rewrite.gpus = 9: a node has 8 GPUs" in refused(setting, "jobs.rewrite.gpus=9")


def test_what_slurm_refuses_is_refused_before_any_job_starts(setting):
    setting.slurm.refuse("--gres=gpu:9")
    assert "Requested node configuration is not available" in refused(setting, "jobs.run.options=[--gres=gpu:9]")


def test_a_missing_image_an_unwritable_folder_and_a_missing_corpus_are_told_together(setting):
    setting.values["corpus"]["path"] = "/nowhere/corpus"
    (setting.folder / "plain").write_text("")
    (setting.folder / "site.env").write_text(SITE.replace("CONTAINER_IMAGE=", "CONTAINER_IMAGE=/nowhere/image.sqsh")
                                             + f"SCRATCH={setting.folder / 'plain'}/below\n")
    message = refused(setting)
    assert "/nowhere/image.sqsh" in message
    assert "plain/below cannot be written" in message
    assert "/nowhere/corpus does not exist" in message


def test_a_layout_that_does_not_fit_the_model_is_refused(setting):
    assert "tensor_model_parallel_size 3 does not divide" in refused(
        setting, "run.parallel.tensor_model_parallel_size=3", "data_parallel_size=8")


def test_original_text_that_would_be_repeated_more_often_than_allowed_is_refused(setting):
    message = refused(setting, "conditions.low.sources.low={fill: true, max_epochs: 4}")
    assert "run/low/seed0: source 'low' has 1,000 tokens and is asked for 5,120 (5.12 epochs)" in message


def test_processes_that_do_not_fill_nodes_are_refused(setting):
    assert "12 processes" in refused(setting, "data_parallel_size=12")


def test_two_studies_of_one_name_are_refused(setting):
    study = setting.load().studies[0].study
    with pytest.raises(UserError, match="two studies are named tiny-study"):
        plan_studies([study, study])


def test_a_kept_study_is_the_same_study(setting):
    study = setting.load("seeds=[3]", "jobs.import.time=1:00:00").studies[0].study
    file = keep_study(study, [], setting.folder)
    assert load_study(file, []) == study


def test_seconds_of_a_run_are_those_of_its_iterations(tmp_path):
    rows = [{"event": "train", "tokens": 100, "tokens_per_second": 50.0}, {"event": "validation", "sources": {}},
            {"event": "train", "tokens": 200, "tokens_per_second": 25.0}]
    settings = {"model": {"hf_folder": "m"}, "data": {"sources": {}}, "train": {"budget_tokens": 1}}
    node = Node("run/a/seed0", "run", "megatron_ext.train", settings)
    folder = node.output(tmp_path)
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    publish_in_place(folder, kind="run", settings={}, inputs={}, counts={})
    assert stage_seconds([node], tmp_path) == {"run/a/seed0": 6.0}
    branch = [{**row, "iteration": number, "tokens": row["tokens"] + 900} for number, row in zip((10, 10, 11), [
        rows[0], {**rows[1], "tokens": 100}, rows[2]], strict=True)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in branch))
    assert stage_seconds([node], tmp_path) == {"run/a/seed0": 6.0}  # the trunk's 900 tokens are not its own


def test_seconds_of_an_array_are_those_of_its_parts_and_the_merge(tmp_path):
    node = Node("rewrite/a", "rewrites", "tools.rewrite_corpus", {"documents": "d", "tokenizer": "t"})
    output = node.output(tmp_path)
    for seconds, folder in ((1, output), (20, Part(0, 2).folder(output)), (300, Part(1, 2).folder(output))):
        folder.mkdir(parents=True)
        write_manifest(folder, {"kind": "rewrites", "settings": {}, "inputs": {}}, {}, {}, seconds)
    Part(0, 3).folder(output).mkdir()  # never finished
    assert stage_seconds([node], tmp_path) == {"rewrite/a": 321}


def test_an_hour_of_an_engine_costs_an_hour_of_each_of_its_gpus(setting):
    study = setting.load("jobs.rewrite.gpus=2").studies[0]
    devices = {node.stage: num_devices(study.study, node) for node in study.nodes}
    assert devices["rewrite"] == 2
    assert devices["evaluate"] == 1
    assert devices["run"] == next(node.processes for node in study.nodes if node.stage == "run")


@pytest.mark.parametrize("time", ["24:00:00", "1-12:00:00", "90"])
def test_a_time_is_given_as_slurm_writes_it(setting, time):
    assert setting.load(f"jobs.run.time={time}").studies[0].study.jobs.run.time == time
    setting.values["jobs"]["run"] = {"time": time}  # in the file, where YAML 1.1 would read 24:00:00 as a number
    assert setting.load().studies[0].study.jobs.run.time == time


def test_what_is_no_time_is_refused(setting):
    with pytest.raises(UserError, match=r"jobs\.run\.time = 'a day': Slurm reads minutes"):
        setting.load("jobs.run.time=a day")


def test_the_forecast_shows_its_arithmetic(setting):
    setting.load()
    lines = "\n".join(describe_cost(setting.studies, setting.jobs, setting.states(), setting.work))
    # 6 x 10^9 parameters x 5,120 tokens: next to nothing; what counts is that the factors are the study's.
    assert "6 x 1B x 5,120 tokens / 400 TFLOP/s" in lines
    assert "1,000 tokens x 4 styles x 0.75 = 3,000 tokens" in lines
    assert "= high 2,112 (2.06 epochs) + high_rewrites 3,008 (1.00 epochs)" in lines
    assert "8 (1 x 2 GPU), merge" in lines
    assert f"{len(setting.jobs)} jobs" in lines


def test_a_model_of_unknown_size_is_told(setting):
    setting.values["cost"] = {}
    setting.load()
    for node in setting.studies[0].nodes:
        if node.stage == "model":
            for file in node.output(setting.work).iterdir():
                file.unlink()
    lines = list(describe_cost(setting.studies, setting.jobs, setting.states(), setting.work))
    assert any("the size of some/instruct is not known" in line and "cost.billion_parameters" in line for line in lines)
    assert "GPU-hours" in lines[-1]


def test_checkpoints_along_training_are_kept_exported_and_evaluated(setting):
    setting.submit("evaluation.checkpoints=all")
    run = setting.node("run/low/seed0")
    assert run.settings["checkpoint"]["keep_tokens"] == [1280, 2560, 3840]  # 256 tokens an iteration, every 5
    export = setting.node("export/low/seed0/iter_0000005")
    assert export.config(setting.work)["checkpoint"].endswith("/checkpoints/iter_0000005")
    assert "evaluate.low.seed0.iter_0000015" in setting.slurm.jobs
    jobs = setting.slurm.jobs
    early, last = jobs["export.low.seed0.iter_0000005"], jobs["export.low.seed0"]
    assert option(early, "dependency") == f"after:{jobs['run.low.seed0']['id']}"  # it starts while the run goes on
    assert early["environment"]["TRAIN_JOB"] == jobs["run.low.seed0"]["id"]
    assert option(last, "dependency") == f"afterok:{jobs['run.low.seed0']['id']}"
    plain = setting.load().node("run/low/seed0")
    assert plain.identity == run.identity  # what is evaluated does not make it another run


def test_a_checkpoint_that_a_finished_run_did_not_keep_is_told(setting):
    setting.load()
    counts = {"train": {"tokens": 1000}, "valid": {"tokens": 0}, "vocab_size": 64}
    for name in ("select/high", "select/low", "rewrite/high", "tokenize/high", "tokenize/low",
                 "tokenize/high_rewrites", "run/low/seed0"):
        setting.finish(setting.node(name), {"a": name}, counts)
    assert "did not keep checkpoints/iter_0000005" in refused(setting, "evaluation.checkpoints=all")


STUDIES = sorted(path for path in Path("examples/studies").glob("*.yaml") if path.name != "classicc.yaml")


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: path.stem)
def test_the_shipped_studies_load_keep_the_contract_and_have_a_forecast(path, tmp_path):
    studies = plan_studies([load_study(path, [])])
    jobs = plan_jobs(studies, tmp_path / "work", read_site())
    lines = list(describe_cost(studies, jobs, job_states(jobs, tmp_path / "work", {}), tmp_path / "work"))
    assert "GPU-hours" in lines[-1]
    assert float(lines[-1].split(" jobs, ")[1].split(" ")[0].replace(",", "")) > 500
    assert "would be refused" not in "\n".join(lines)  # with the paper's yield every blend can be had


def test_the_papers_two_sizes_share_their_data():
    files = [Path(f"examples/studies/paper_{size}.yaml") for size in ("1.1b", "7b")]
    small, large = plan_studies([load_study(file, []) for file in files])
    shared = {node.identity for node in small.nodes} & {node.identity for node in large.nodes}
    stages = [node.stage for node in small.nodes if node.identity in shared]
    assert Counter(stages) == {"model": 2, "select": 2, "rewrite": 2, "tokenize": 4, "overlap": 1}
    assert len([node for node in large.nodes if node.stage == "run"]) == 4


def test_a_job_that_submits_gives_nothing_of_its_own_to_the_new_ones(setting, monkeypatch):
    outer = {"SLURM_ARRAY_TASK_ID": "3", "SLURM_ARRAY_TASK_COUNT": "8", "SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n1",
             "NUM_PARTS": "8", "CHECKPOINT": "/old", "TRAIN_JOB": "5", "PMIX_RANK": "0"}
    for name, value in (outer | {"SLURM_CONF": "/etc/slurm.conf", "MY_SETTING": "kept"}).items():
        monkeypatch.setenv(name, value)
    setting.submit()
    for job in setting.slurm.jobs.values():
        found = {name: value for name, value in job["environment"].items() if name in outer}
        assert found.items() <= {("NUM_PARTS", "8")}  # of the array of eight parts
        assert job["environment"]["SLURM_CONF"] == "/etc/slurm.conf"
        assert job["environment"]["MY_SETTING"] == "kept"


def test_a_work_folder_with_comma_and_percent_travels_whole(setting):
    setting.work = setting.folder / "a,b %j" / "work"
    setting.submit()
    for job in setting.slurm.jobs.values():
        assert job["environment"]["PROVENANCE"] == str(setting.work)
        assert option(job, "export") == "ALL"
        assert option(job, "output").startswith(f"{setting.folder}/a,b %%j/work/logs/")
        assert str(setting.work) in option(job, "comment")


def test_two_submissions_at_once_submit_each_job_once(setting, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path)
    setting.load()
    environment = {**os.environ, "SITE": str(tmp_path / "site.env")}
    commands = [[sys.executable, "-m", "tools.submit_study", str(tmp_path / "study.yaml"), "--work", str(work)]
                for work in (setting.work, tmp_path / "link" / ".." / tmp_path.name / "work")]
    (setting.slurm.folder / "squeue").write_text(SQUEUE_OF_SUBMITTED.format(
        python=sys.executable, calls=str(setting.slurm.folder / "calls.jsonl")))
    both = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
            for command in commands]
    outputs = [one.communicate(timeout=300)[0] for one in both]
    assert [one.returncode for one in both] == [0, 0], outputs
    calls = [json.loads(line) for line in (setting.slurm.folder / "calls.jsonl").read_text().splitlines()]
    names = [option(call, "job-name") for call in calls]
    assert len(names) == len(set(names)) > 10
    assert sum("nothing to submit" in output for output in outputs) == 1


SQUEUE_OF_SUBMITTED = '''#!{python}
import json, pathlib
calls = pathlib.Path({calls!r})
for line in calls.read_text().splitlines() if calls.exists() else []:
    call = json.loads(line)
    comment = next(word for word in call["words"] if word.startswith("--comment=")).partition("=")[2]
    array = next((word for word in call["words"] if word.startswith("--array=")), None)
    for task in range(8) if array else [None]:
        print(call["id"] + ("" if task is None else f"_{{task}}"), "PENDING", "Resources", comment, sep="|")
'''
