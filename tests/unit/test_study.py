import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from megatron_ext.artifacts import produce
from megatron_ext.errors import UserError
from megatron_ext.study.arms import RefusedArm, missing_conditions, narrowed, refuse_pointless, why_unfinished
from megatron_ext.study.config import load_study
from megatron_ext.study.graph import build_graph
from megatron_ext.study.logs import last_error
from megatron_ext.study.nodes import Node
from megatron_ext.study.programs import PROGRAMS, settings_of
from megatron_ext.study.runner import StageError, is_up_to_date, run_nodes

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture
def study_values(tmp_path):
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "a.jsonl").write_text('{"id": "1", "text": "olá", "stem_score": 3.0, "edu_score": 3.0}\n')
    return {
        "name": "tiny", "corpus": {"path": str(tmp_path / "corpus")}, "base_model": "some/model",
        "subsets": {"high": {"rule": "stem > 2.5", "budget_tokens": 10},
                    "low": {"rule": "stem < 2", "budget_tokens": 10}},
        "rewriter": {"model": "some/instruct", "subsets": ["high"]}, "tokenize": {"valid_fraction": 0.0001},
        "run": {"train": {"budget_tokens": 512, "global_batch_size": 2}, "data": {"seq_length": 64}},
        "conditions": {
            "low": {"sources": {"low": {"fill": True}}},
            "high": {"sources": {"high": {"fill": True}, "high_rewrites": {"epochs": 1}}},
        },
        "evaluation": {"baseline": "low"},
    }


@pytest.fixture
def load(tmp_path):
    def load(values, *overrides):
        (tmp_path / "study.yaml").write_text(yaml.safe_dump(values))
        return load_study(tmp_path / "study.yaml", list(overrides))

    return load


def by_name(nodes):
    return {node.name: node for node in nodes}


def test_shared_work_is_one_node_and_every_node_follows_its_inputs(load, study_values):
    nodes = build_graph(load(study_values, "seeds=[0, 1]"))
    names = [node.name for node in nodes]
    assert len(names) == len(set(names))
    assert names.count("select/high") == 1
    assert {"run/low/seed0", "run/low/seed1", "run/high/seed0", "run/high/seed1"} <= set(names)
    seen = set()
    for node in nodes:
        for value in [*node.inputs.values(), *node.after]:
            parents = value if isinstance(value, list) else [getattr(value, "node", value)]
            assert all(parent.identity in seen for parent in parents if isinstance(parent, Node)), node.name
        seen.add(node.identity)


def test_parity_is_proved_with_the_layers_and_the_layout_that_train(load, study_values):
    nodes = by_name(build_graph(load(
        study_values, "data_parallel_size=3", "run.parallel.context_parallel_size=2", "run.data.seq_length=64",
        "run.train.global_batch_size=6", "run.parallel.tensor_model_parallel_size=2",
        "run.model.layer_implementation=transformer_engine")))
    parity, run = nodes["import/parity"], nodes["run/low/seed0"]
    assert parity.settings["layer_implementation"] == "transformer_engine"
    assert parity.settings["parallel"] == run.settings["parallel"]
    assert (parity.processes, run.processes) == (4, 12)


def test_a_change_renames_what_depends_on_it_and_nothing_else(load, study_values, tmp_path):
    before = by_name(build_graph(load(study_values)))
    after = by_name(build_graph(load(study_values, "subsets.high.rule=stem > 3")))
    changed = {name for name in before if before[name].identity != after[name].identity}
    assert "select/low" not in changed
    assert "model/base" not in changed
    assert {"select/high", "rewrite/high", "tokenize/high", "run/high/seed0", "export/high/seed0"} <= changed


def test_changed_corpus_bytes_rename_the_selection(load, study_values, tmp_path):
    before = by_name(build_graph(load(study_values)))
    with open(tmp_path / "corpus" / "a.jsonl", "a") as file:
        file.write('{"id": "2", "text": "oi", "stem_score": 1.0, "edu_score": 1.0}\n')
    after = by_name(build_graph(load(study_values)))
    assert before["select/high"].identity != after["select/high"].identity


def test_conditions_that_differ_in_the_learning_rate_are_refused_unless_listed(load, study_values):
    study_values["conditions"]["high"]["overrides"] = {"optimizer.lr": 1e-3}
    with pytest.raises(UserError, match=r"optimizer\.lr = 0\.001 differs from the other conditions"):
        load(study_values)
    study_values["allow_differences"] = ["optimizer.lr"]
    nodes = by_name(build_graph(load(study_values)))
    assert nodes["run/high/seed0"].settings["optimizer"]["lr"] == 1e-3
    assert nodes["run/low/seed0"].settings["optimizer"]["lr"] != 1e-3


def test_all_wrong_names_are_told_at_once(load, study_values):
    study_values["conditions"]["low"]["sources"] = {"lowest": {"fill": True}}
    study_values["evaluation"]["baseline"] = "medium"
    with pytest.raises(UserError, match=r"'lowest' is no source.*'medium' is no condition"):
        load(study_values)


def test_mistakes_in_the_run_section_are_told(load, study_values):
    study_values["run"]["train"]["budget_token"] = 5
    with pytest.raises(UserError, match="did you mean 'budget_tokens'"):
        build_graph(load(study_values))


FROM_THE_RUNS_OF_HIGH = {"run/high/seed0", "export/high/seed0", "evaluate/high/seed0", "validate/high/seed0",
                         "compare/conditions", "compare/held_out"}
FROM_ALL_RUNS = FROM_THE_RUNS_OF_HIGH | {name.replace("high", "low") for name in FROM_THE_RUNS_OF_HIGH}
OF_HIGH = FROM_THE_RUNS_OF_HIGH | {"select/high", "tokenize/high", "rewrite/high", "tokenize/high_rewrites"}
HELD_OUT = {"overlap/held_out", "validate/base", "validate/low/seed0", "validate/high/seed0", "compare/held_out"}
CHANGES = {
    "white space of a rule": (["subsets.high.rule=stem  >2.5"], set()),
    "a rule's value": (["subsets.high.rule=stem > 3"], OF_HIGH | HELD_OUT),
    "a new subset": (["subsets.more={rule: stem > 1, budget_tokens: 10}"], HELD_OUT),
    "a new seed": (["seeds=[0, 1]"], {"compare/conditions", "compare/held_out"}),
    "a new condition": (["conditions.both.sources={low: {fill: true}, high: {fill: true}}"],
                        {"compare/conditions", "compare/held_out"}),
    "fewer validation sources": (["validation_sources=[low]"], HELD_OUT),
    "another learning rate": (["run.optimizer.lr=1e-3"], FROM_ALL_RUNS),
    "a new task": (["evaluation.settings.tasks=[tweetsentbr_greedy, assin_rte_greedy]"],
                   {"evaluate/base", "evaluate/low/seed0", "evaluate/high/seed0", "compare/conditions"}),
    "what was always scored": (["evaluation.settings.scoring=[generate]"], set()),
    "gold answers": (["evaluation.settings.scoring=[generate, gold]"],
                     {"evaluate/base", "evaluate/low/seed0", "evaluate/high/seed0", "compare/conditions"}),
    "a measure of gold answers as the outcome": (
        ["evaluation.settings.scoring=[generate, gold]", "evaluation.primary=cloze_accuracy"],
        {"evaluate/base", "evaluate/low/seed0", "evaluate/high/seed0", "compare/conditions"}),
    "another retention": (["run.checkpoint.keep_last=5"], set()),
    "another hang limit": (["run.guard.hang_minutes=5"], set()),
    "another layout": (["run.parallel.pipeline_model_parallel_size=2"], {"import/parity"}),
    "another batch of an engine": (["evaluation.settings.batch_size=4", "rewriter.settings.check_workers=1"], set()),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_made_again_when_a_finished_study_is_changed(load, study_values, change):
    study_values["evaluation"]["settings"] = {"tasks": ["tweetsentbr_greedy"]}
    study_values["tokenize"] = {"valid_fraction": 0.1}
    overrides, expected = CHANGES[change]
    before = by_name(build_graph(load(study_values)))
    after = by_name(build_graph(load(study_values, *overrides)))
    assert before.keys() <= after.keys()
    assert {name for name in before if before[name].identity != after[name].identity} == expected


PROGRAM = '''
import json, sys
from pathlib import Path
from megatron_ext.artifacts import produce
from megatron_ext.settings import Settings, parse_stage_arguments

class S(Settings):
    text: str

def make(folder):
    (folder / "text").write_text(settings.text)
    return {}

if __name__ == "__main__":
    settings, output = parse_stage_arguments(S, "test")
    if settings.text == "fail":
        print("error: this was to be expected")
        sys.exit(3)
    produce(output, kind="text", settings=settings.model_dump(), inputs={}, make=make)
'''


@pytest.fixture
def program(tmp_path, monkeypatch):
    (tmp_path / "stage_program.py").write_text(PROGRAM)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:.")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(PROGRAMS, "stage_program", "stage_program:S")
    settings_of.cache_clear()
    return "stage_program"


def test_runner_runs_each_node_once_and_keeps_logs_and_configs(program, tmp_path, capsys):
    nodes = [Node("select/a", "text", program, {"text": "olá"}), Node("select/b", "text", program, {"text": "oi"})]
    assert run_nodes(nodes, tmp_path / "work").num_run == 2
    assert (nodes[0].output(tmp_path / "work") / "text").read_text() == "olá"
    assert json.loads((tmp_path / "work" / "configs" / f"{nodes[0].label}.json").read_text()) == {"text": "olá"}
    assert run_nodes(nodes, tmp_path / "work").num_run == 0
    assert "[2/2] select/b: up to date" in capsys.readouterr().out


RUNNER = """
import sys
from pathlib import Path
from megatron_ext.study.nodes import Node
from megatron_ext.study.programs import PROGRAMS
from megatron_ext.study.runner import run_nodes

PROGRAMS["stage_program"] = "stage_program:S"
nodes = [Node(f"select/{name}", "text", "stage_program", {"text": name}) for name in "abc"]
nodes.append(Node("tokenize/a", "text", "stage_program", {"text": "of a"}, after=(nodes[0],)))
print("ran", run_nodes(nodes, Path(sys.argv[1])).require_all().num_run)
"""


def test_two_runners_in_one_folder_share_the_stages(program, tmp_path):
    work, link = tmp_path / "work", tmp_path / "link"
    work.mkdir()
    link.symlink_to(work)
    runners = [subprocess.Popen([sys.executable, "-c", RUNNER, str(place)], stdout=subprocess.PIPE, text=True,
                                stderr=subprocess.STDOUT, cwd=CHECKOUT) for place in (work, link)]
    told = [runner.communicate(timeout=300)[0] for runner in runners]
    assert [runner.returncode for runner in runners] == [0, 0], told
    assert sum(int(re.search(r"^ran (\d)$", one, re.MULTILINE)[1]) for one in told) == 4
    assert all(len(re.findall(rf"\] {node}: (stage_program|up to date)", one)) == 1
               for one in told for node in ("select/a", "select/b", "select/c", "tokenize/a"))
    logs = [log.read_text() for log in (work / "logs").iterdir()]
    assert len(logs) == 4


def test_a_failing_stage_takes_those_that_need_it_with_it_and_the_others_go_on(program, tmp_path, capsys):
    work = tmp_path / "work"
    fails = Node("select/a", "text", program, {"text": "fail"})
    nodes = [fails, Node("select/b", "text", program, {"text": "olá"}),
             Node("tokenize/a", "text", program, {"text": "x"}, after=(fails,)),
             Node("tokenize/b", "text", program, {"text": "y"})]
    outcome = run_nodes(nodes, work)
    assert outcome.num_run == 2
    assert outcome.waiting == ["tokenize/a"]
    with pytest.raises(StageError, match=r"(?s)select/a: this was to be .* \(exit code 3; .*not run .*tokenize/a"):
        outcome.require_all()
    assert "[3/4] tokenize/a: not run, for want of select/a" in capsys.readouterr().out
    assert [is_up_to_date(node, work) for node in nodes] == [False, True, False, True]
    assert why_unfinished(nodes[2], work) == "select/a: error: this was to be expected"


def evaluation(program, name):
    return Node(f"evaluate/{name}", "evaluation", "evaluation.run_poeta", {"tasks": ["tweetsentbr_greedy"]},
                {"model": Node(f"model/{name}", "text", program, {"text": name})})


def finish(node, work):
    produce(node.output(work), kind=node.kind, settings={"text": node.name}, inputs={}, make=lambda folder: {})


def test_the_comparison_is_made_of_what_is_there_and_again_when_more_is(program, tmp_path):
    work = tmp_path / "work"
    arms = {name: [evaluation(program, f"{name}/{seed}") for seed in range(2)]
            for name in ("low", "high", "both", "none")}
    asked = Node("compare/conditions", "comparison", "evaluation.compare",
                 {"baseline": "low", "interactions": {"i": ["low", "high", "both", "none"]}},
                 {f"evaluations.{name}": nodes for name, nodes in arms.items()})
    for node in [*arms["low"], arms["high"][0], *arms["none"]]:
        finish(node, work)
    part = narrowed(asked, work)
    assert part.inputs == {"evaluations.low": arms["low"], "evaluations.high": arms["high"][:1],
                           "evaluations.none": arms["none"]}
    assert (part.settings["missing"], part.settings["interactions"]) == (["high (1 of 2 seeds)", "both"], {})
    assert missing_conditions(asked, work) == {"high": "model/high/1 has not run", "both": "model/both/0 has not run"}
    assert part.output(work) != asked.output(work)
    for nodes in arms.values():
        for node in nodes:
            if not is_up_to_date(node, work):
                finish(node, work)
    assert narrowed(asked, work) is asked
    shutil.rmtree(arms["low"][0].output(work))
    shutil.rmtree(arms["low"][1].output(work))
    assert narrowed(asked, work) is None  # without a baseline


@pytest.fixture
def trainable(tmp_path):
    """run(name, sources) -> a run node whose model and sources are there; sources: name -> (folder, tokens, amount)."""
    def source(folder, tokens):
        def make(place):
            (place / "train.bin").write_bytes(folder.encode() * tokens)
            return {"train": {"tokens": tokens}, "valid": {"tokens": 0}}

        return produce(tmp_path / folder, kind="tokenized", settings={}, inputs={}, make=make).path

    def run(name, sources, seed=0):
        (tmp_path / "base").mkdir(exist_ok=True)
        settings = {"model": {}, "train": {"budget_tokens": 640, "global_batch_size": 2, "seed": seed},
                    "data": {"seq_length": 64, "sources": {key: amount for key, (_, _, amount) in sources.items()}}}
        inputs = {"model.hf_folder": tmp_path / "base"}
        inputs |= {f"data.sources.{key}.path": source(folder, tokens) for key, (folder, tokens, _) in sources.items()}
        return Node(f"run/{name}/seed{seed}", "run", "megatron_ext.train", settings, inputs)

    return run


FILL = {"fill": True}


@pytest.mark.parametrize(("sources", "message"), [
    ({"low": ("low", 1000, FILL), "rewrites": ("none", 0, {"epochs": 1})}, "nothing of rewrites"),
    ({"low": ("low", 1000, FILL), "more": ("more", 1000, {"epochs": 0.0001})}, "nothing of more"),
    ({"again": ("copy", 1000, FILL)}, "the same text as run/high/seed0"),
])
def test_an_arm_that_would_show_nothing_of_its_own_is_refused(trainable, tmp_path, sources, message):
    first = trainable("high", {"high": ("copy", 1000, FILL)})
    arm = trainable("arm", sources)
    with pytest.raises(RefusedArm, match=message):
        refuse_pointless(arm, [first, arm], tmp_path / "work")


def test_arms_that_differ_train(trainable, tmp_path):
    first = trainable("high", {"high": ("copy", 1000, FILL)})
    others = [trainable("low", {"low": ("low", 1000, FILL)}), trainable("high", {"high": ("copy", 1000, FILL)}, seed=1),
              trainable("both", {"high": ("copy", 1000, FILL), "low": ("low", 1000, {"fraction": 0.5})})]
    for node in others:
        refuse_pointless(node, [first, *others], tmp_path / "work")
    refuse_pointless(first, [first, *others], tmp_path / "work")


@pytest.mark.parametrize(("log", "expected"), [
    ("", "nothing was written"), ("a\nb\n", "b"), ("error: no disk\nsrun: error: node1: task 0\n", "error: no disk"),
    ("error: the run cannot start:\nsrun: error: node1: task 0\n  - data.sources.b: no text\n  - x: y\n"
     "12:00 [job] error: the run was refused (see above)\n",
     "error: the run cannot start: data.sources.b: no text; x: y"),
    ("0: error: not possible:\n0:   - because\n", "0: error: not possible: because"),
])
def test_the_last_error_of_a_log_is_told_with_its_list(tmp_path, log, expected):
    (tmp_path / "log").write_text(log)
    assert last_error(tmp_path / "log") == expected
