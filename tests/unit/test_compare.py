import json
import os
import re
import shutil
import subprocess
import sys

import pytest

from evaluation.categories import SHIPPED, read_categories
from evaluation.compare import CompareSettings, compare
from evaluation.poeta import task_names
from evaluation.statistics import holm
from evaluation.verdicts import difference_verdict
from megatron_ext.errors import UserError
from megatron_ext.settings import validate
from tests.unit.simulated_study import TASKS, comparer, evaluator, write_evaluation

ESTIMATE = {"value": 2.0, "low": 0.5, "high": 3.5, "minimum_detectable": 2.1}


@pytest.fixture
def evaluate(tmp_path):
    return evaluator(tmp_path)


@pytest.fixture
def run(tmp_path):
    return comparer(tmp_path)


def test_a_planted_effect_is_claimed_and_none_where_there_is_none(evaluate, run):
    found = run({"low": [evaluate("l", 0.4, num_items=300, seed=1)],
                 "same": [evaluate("s", 0.4, num_items=300, seed=2)],
                 "high": [evaluate("h", 0.6, num_items=300, seed=3)]}, "low")
    by_pair = {(one["condition"], one["reference"]): one for one in found["differences"]}
    assert by_pair["high", "low"]["is_claimed"]
    assert by_pair["high", "low"]["npm"]["all"]["low"] > 10
    assert by_pair["high", "low"]["verdict"].startswith("high is better than low: +")
    assert "one training run a condition" in by_pair["high", "low"]["verdict"]
    assert not by_pair["same", "low"]["is_claimed"]
    assert by_pair["same", "low"]["verdict"].startswith("No difference can be claimed between same and low")
    assert "could have detected" in by_pair["same", "low"]["verdict"]


def test_scores_are_those_of_the_evaluation_with_an_interval_around_each(evaluate, run, tmp_path):
    found = run({"a": [evaluate("a", 0.5)], "b": [evaluate("b", 0.7, seed=2)]}, "a")
    stored = json.loads((tmp_path / "a" / "results.json").read_text())
    condition = found["conditions"]["a"]
    assert condition["npm"]["all"]["value"] == pytest.approx(stored["npm"]["all"])
    assert condition["npm"]["native"]["value"] == pytest.approx(stored["npm"]["native"])
    for task, cell in condition["tasks"].items():
        assert cell["score"] == pytest.approx(stored["tasks"][task]["score"])
        assert cell["score_low"] < cell["score"] < cell["score_high"]
        assert cell["invalid_rate"] == pytest.approx(stored["tasks"][task]["invalid_rate"])


def test_the_pairing_narrows_the_interval_of_a_difference(evaluate, run):
    """Two models that answer alike but for a few items differ with less error than each score has."""
    found = run({"a": [evaluate("a", 0.50, num_items=200, seed=1)],
                 "b": [evaluate("b", 0.55, num_items=200, seed=1)]}, "a")
    difference = found["differences"][0]["npm"]["all"]
    assert difference["standard_error"] < 0.6 * found["conditions"]["a"]["npm"]["all"]["standard_error"]


def test_few_or_sample_items_carry_no_claim(evaluate, run):
    only = {"boolq_pt_greedy": TASKS["boolq_pt_greedy"]}
    found = run({"base": [evaluate("base", 0.02, num_items=8, tasks=only)],
                 "good": [evaluate("good", 0.98, num_items=8, tasks=only)]}, "good")
    [difference] = found["differences"]
    assert not difference["is_claimed"]
    assert "n = 8 items" in difference["verdict"]
    assert any("Only 8 items" in caveat for caveat in found["caveats"])
    assert any("One training run" in caveat for caveat in found["caveats"])


def test_seeds_are_means_and_the_interaction_is_a_difference_of_differences(evaluate, run):
    skills = {"a": 0.7, "b": 0.5, "c": 0.52, "d": 0.5}
    evaluations = {name: [evaluate(f"{name}{seed}", skill, num_items=150, seed=10 * i + seed) for seed in range(3)]
                   for i, (name, skill) in enumerate(skills.items())}
    found = run(evaluations, "b", interactions={"rewriting": ["a", "b", "c", "d"]})
    npm = {name: one["npm"]["all"]["value"] for name, one in found["conditions"].items()}
    assert npm["a"] == pytest.approx(sum(found["conditions"]["a"]["npm_per_seed"]) / 3)
    [interaction] = found["interactions"]
    assert interaction["npm"]["all"]["value"] == pytest.approx(npm["a"] - npm["b"] - npm["c"] + npm["d"])
    assert interaction["is_claimed"]
    assert not any("One training run" in caveat for caveat in found["caveats"])


def test_curves_have_a_point_with_a_band_for_every_checkpoint(evaluate, run):
    final = {"base": [evaluate("base", 0.4)], "a": [evaluate(f"a{seed}", 0.6, seed=seed) for seed in (1, 2)]}
    early = [evaluate(f"early{seed}", 0.5, seed=seed + 10) for seed in (1, 2)]
    found = run(final, "a", along_training={"a": {2000: final["a"], 1000: early}})
    [points] = found["curves"].values()
    assert [point["tokens"] for point in points] == [0, 1000, 2000]
    assert points[0]["npm"]["value"] == pytest.approx(found["conditions"]["base"]["npm"]["all"]["value"])
    assert points[2]["npm"]["value"] == pytest.approx(found["conditions"]["a"]["npm"]["all"]["value"])
    assert points[2]["npm_per_seed"] == pytest.approx(found["conditions"]["a"]["npm_per_seed"])
    assert all(point["npm"]["low"] < point["npm"]["value"] < point["npm"]["high"] for point in points)


def test_a_checkpoint_of_another_profile_is_refused(evaluate, run):
    with pytest.raises(UserError, match=r"profile of a .* and a at 1,000 tokens .*: 'official' and 'clean'"):
        run({"a": [evaluate("a")], "b": [evaluate("b")]}, "a",
            along_training={"a": {1000: [evaluate("early", profile="clean")]}})


def test_categories_are_means_of_their_tasks_and_corrected_together(evaluate, run, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("exams: [enem_greedy, bluex_launch_version_greedy]\nrest: [boolq_pt_greedy, logiqa_greedy]\n"
                    "absent: [faquad]\n")
    found = run({"a": [evaluate("a", 0.4, num_items=200)], "b": [evaluate("b", 0.6, num_items=200, seed=2)],
                 "c": [evaluate("c", 0.4, num_items=200, seed=3)]}, "a", categories=file)
    assert found["categories"] == {"exams": ["enem_greedy"], "rest": ["boolq_pt_greedy", "logiqa_greedy"]}
    b = found["conditions"]["b"]
    tasks = [b["tasks"][name]["npm"]["value"] for name in ("boolq_pt_greedy", "logiqa_greedy")]
    assert b["categories"]["rest"]["value"] == pytest.approx(sum(tasks) / 2)
    against = {one["condition"]: one["categories"] for one in found["differences"] if one["family"] == "baseline"}
    estimates = [one for categories in against.values() for one in categories.values()]
    assert [one["p_corrected"] for one in estimates] == holm([one["p"] for one in estimates])
    assert all(one["p_corrected"] >= one["p"] for one in estimates)
    assert against["b"]["rest"]["is_claimed"] and not against["c"]["rest"]["is_claimed"]


@pytest.mark.parametrize(("text", "message"), [
    ("a: [enem_greedy, enem_greedy]", "enem_greedy stands twice"), ("a: [enem]", "no task 'enem'"), ("a: x", "list")])
def test_categories_that_make_no_sense_are_refused(tmp_path, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_categories(tmp_path / "mine.yaml")


def test_every_task_has_a_shipped_category():
    assert sorted(task for tasks in read_categories().values() for task in tasks) == sorted(task_names())
    assert "THIRD PARTY" in SHIPPED.read_text()


def test_the_same_request_gives_the_same_bytes(evaluate, tmp_path):
    settings = CompareSettings(evaluations={"a": [evaluate("a")], "b": [evaluate("b", seed=5)]}, baseline="a",
                               num_resamples=300)
    first, second = (compare(settings, tmp_path / name).content_hash for name in ("one", "two"))
    assert first == second


@pytest.mark.parametrize(("options", "message"), [
    ({"profile": "clean"}, "profile of a .* 'official' and 'clean'"),
    ({"data": "sample"}, "data of a .* 'official' and 'sample'"),
    ({"deviations": ["at most 4 examples a task"]}, "deviations of a "),
    ({"tasks": {"boolq_pt_greedy": TASKS["boolq_pt_greedy"]}}, "task_set of a "),
    ({"limit": 500}, "limit of a .*: 80 and 500"),
    ({"num_items": 40, "limit": 80}, "num_examples is 80 for a .* 40 for b"),
])
def test_what_is_not_alike_is_refused(evaluate, run, options, message):
    with pytest.raises(UserError, match=message):
        run({"a": [evaluate("a")], "b": [evaluate("b", **options)]}, "a")


def test_other_prompts_are_refused(evaluate, run, monkeypatch):
    first = evaluate("a")
    monkeypatch.setattr("tests.unit.simulated_study.PROMPT", "another {task} {index}")
    with pytest.raises(UserError, match=r"item 0: the prompts of a \(model 1\) and b \(model 1\) differ"):
        run({"a": [first], "b": [evaluate("b")]}, "a")


def test_settings_name_every_mistake():
    with pytest.raises(UserError, match=r"baseline: 'z' is no condition \(a\); interactions.x: needs four"):
        validate(CompareSettings, {"evaluations": {"a": ["x"]}, "baseline": "z", "interactions": {"x": ["a"]}}, "test")


@pytest.mark.parametrize(("change", "said"), [
    ({}, "b is better than a: \\+2.0 NPM, 95 % interval \\+0.5 to \\+3.5, n = 900 items, corrected p = 0.010"),
    ({"p": 0.2}, "No difference .* \\(p = 0.200 once corrected for the number of comparisons\\)"),
    ({"num_items": 20}, "No difference .* \\(a claim needs at least 30 items\\)"),
    ({"data": "sample"}, "No difference .* \\(sample items carry no claim\\)"),
    ({"estimate": ESTIMATE | {"low": -0.1}}, "No difference .* could have detected 2.1 NPM or more"),
    ({"estimate": ESTIMATE | {"low": -140, "minimum_detectable": 264.0}}, "No difference .* too small to detect any"),
    ({"estimate": ESTIMATE | {"low": None, "high": None}}, "No difference .* no interval"),
    ({"estimate": ESTIMATE | {"value": float("nan")}}, "No difference .* a score is undefined"),
])
def test_verdicts_claim_no_more_than_the_numbers(change, said):
    arguments = {"estimate": ESTIMATE, "p": 0.01, "num_items": 900, "num_tasks": 1, "data": "official",
                 "one_seed": False} | change
    verdict = difference_verdict("b", "a", **arguments)
    assert re.match(said, verdict), verdict


def test_a_comparison_has_the_same_bits_on_every_kind_of_processor(evaluate, tmp_path):
    """OpenBLAS takes another kernel, and another order of its sums, on each."""
    folders = {name: [str(evaluate(f"{name}{seed}", skill, num_items=97, seed=seed)) for seed in range(2)]
               for name, skill in (("a", 0.5), ("b", 0.6))}
    hashes = set()
    for kernel in ("Haswell", "Zen", "Prescott", None):
        output = tmp_path / f"on-{kernel}"
        environment = {key: value for key, value in os.environ.items() if not key.startswith("OPENBLAS")}
        environment |= {"OPENBLAS_CORETYPE": kernel} if kernel else {}
        subprocess.run([sys.executable, "-m", "evaluation.compare", "--output", str(output), "baseline=a",
                        "num_resamples=400", f"evaluations={json.dumps(folders)}"], env=environment, check=True,
                       stdout=subprocess.DEVNULL)
        hashes.add((output / "comparison.json").read_bytes())
    assert len(hashes) == 1


def test_a_change_on_the_way_of_one_arm_is_told_and_one_of_all_arms_is_not(evaluate, run):
    def change(key, now):
        return {"iteration": 400, "key": key, "before": None, "now": now}

    common = change("parallel.tensor_model_parallel_size", 2)
    found = run({"base": [evaluate("base", 0.3)], "low": [evaluate("l", 0.4, seed=1, changes=[common])],
                 "high": [evaluate("h", 0.5, seed=2, changes=[common, change("guard.spike_factor", 4.0)])]}, "low")
    (told,) = [caveat for caveat in found["caveats"] if "Changed on the way" in caveat]
    assert "high (model 1): guard.spike_factor from None to 4.0 after iteration 400" in told
    assert "tensor_model_parallel_size" not in told


def test_what_is_missing_is_named(evaluate, run):
    found = run({"low": [evaluate("l", 0.4)], "high": [evaluate("h", 0.5, seed=2)]}, "low", missing=["both"])
    assert "Missing in this comparison, which is made again when it is there: both." in found["caveats"]


def test_a_copy_of_an_evaluation_is_no_second_seed(evaluate, run, tmp_path):
    low, high = evaluate("l", 0.4, seed=1), evaluate("h", 0.6, seed=2)
    shutil.copytree(high, tmp_path / "copy")
    for twice in (tmp_path / "copy", high):
        with pytest.raises(UserError, match=r"would count as two seeds.*high \(model 1\), high \(model 2\)"):
            run({"low": [low], "high": [high, twice]}, "low")


def test_a_model_that_was_evaluated_twice_is_no_second_seed(evaluate, run, tmp_path):
    low, high = evaluate("l", 0.4, seed=1), evaluate("h", 0.6, seed=2)
    write_evaluation(tmp_path / "again", tmp_path / "models" / "h", 0.6, seed=3)
    with pytest.raises(UserError, match="the same model"):
        run({"low": [low], "high": [high, tmp_path / "again"]}, "low")


@pytest.mark.parametrize(("key", "value"), [("dtype", "bfloat16"), ("backend", "vllm"), ("packages", {"torch": "9"})])
def test_other_precision_backend_or_version_is_a_caveat(evaluate, run, key, value):
    same = {"backend": "hf", "dtype": "float32", "device": "cpu", "packages": {"torch": "2"}}
    evaluations = {"low": [evaluate("l", engine=same)], "high": [evaluate("h", seed=2, engine={**same, key: value})]}
    [caveat] = [one for one in run(evaluations, "low")["caveats"] if "not evaluated in the same way" in one]
    assert {"packages": "version of torch"}.get(key, key) in caveat
    assert "high (model 1)" in caveat


def test_models_that_were_evaluated_in_one_way_have_no_such_caveat(evaluate, run):
    same = {"backend": "hf", "dtype": "float32", "device": "cpu", "packages": {"torch": "2"}}
    found = run({"low": [evaluate("l", engine=same)], "high": [evaluate("h", seed=2, engine=same)]}, "low")
    assert not any("not evaluated in the same way" in caveat for caveat in found["caveats"])
