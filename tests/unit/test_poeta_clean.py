"""The profile clean: no leaked example, true chance levels, no undefined score, whole test sets."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import pytest

from evaluation.item_scores import item_scores
from evaluation.poeta import load_task, npm, prepared, task_names, task_spec
from evaluation.poeta.chance import chance_level
from evaluation.poeta.metrics import macro_f1
from evaluation.poeta.prompts import build_requests
from evaluation.poeta.sources import Found
from evaluation.poeta.task import Document, Loaded
from megatron_ext.errors import UserError

POOL_OF_ALL = "math_mc_greedy"


OPTIONS = (" A)", " B)", " C)", " D)")


def documents(count: int) -> list[Document]:
    return [Document(i, f"pergunta {i}:", f" {'ABCD'[i % 4]})", options=OPTIONS) for i in range(count)]


def shots_of(prompt: str) -> list[str]:
    return [block.split(":\n", 1)[1].rsplit(" ", 1)[0] for block in prompt.split("\n###\n")[:-1]]


def test_no_prompt_holds_its_own_question() -> None:
    pool = documents(12)
    pool.append(Document("copy", "pergunta 3:", " A)", options=OPTIONS))
    leaks = {}
    for profile in ("official", "clean"):
        requests = build_requests(load_task(POOL_OF_ALL, profile), Loaded(pool, pool))
        shots = [(request.document.text, shots_of(request.prompt.split("\n\n", 1)[1])) for request in requests]
        assert all(len(drawn) == 5 for _, drawn in shots)
        leaks[profile] = sum(text in drawn for text, drawn in shots)
    assert leaks["official"] > 0
    assert leaks["clean"] == 0


def test_every_other_example_is_drawn_equally_often() -> None:
    pool = documents(8)
    counts = dict.fromkeys((document.text for document in pool), 0)
    for seed in range(200):  # in another order the document gets other draws
        random.Random(seed).shuffle(pool)
        for request in build_requests(load_task(POOL_OF_ALL, "clean"), Loaded(pool, pool)):
            if request.document.text == "pergunta 0:":
                for text in shots_of(request.prompt.split("\n\n", 1)[1]):
                    counts[text] += 1
    assert counts.pop("pergunta 0:") == 0
    assert all(abs(count - 1000 / 7) < 30 for count in counts.values())


def test_a_pool_of_copies_is_too_small() -> None:
    pool = [*documents(5), documents(1)[0]]
    with pytest.raises(UserError, match="holds 4 to choose from"):
        build_requests(load_task(POOL_OF_ALL, "clean"), Loaded(pool, pool))


def test_test_sets_are_whole() -> None:
    assert len(build_requests(load_task(POOL_OF_ALL), Loaded(documents(400), documents(400)))) == 300
    assert len(build_requests(load_task(POOL_OF_ALL, "clean"), Loaded(documents(400), documents(400)))) == 400
    assert all(task_spec(name, "clean").limit is None for name in task_names())


@pytest.mark.parametrize(("task", "options", "chance"), [
    ("poscomp_greedy", [5, 5], 0.2), ("balanced_copa_greedy", [2, 2], 0.5),
    ("arc_easy_greedy_pt", [4, 4, 4, 3], 13 / 48), ("agnews_pt_greedy", [4], 25.0),
    ("faquad", [None], 0.0), ("assin_sts_greedy", [None], 0.0),
])
def test_chance_is_one_over_the_options(task: str, options: list[int | None], chance: float) -> None:
    asked = [Document(None, "?", " A", options=(" ",) * number if number else ()) for number in options]
    assert chance_level(load_task(task, "clean"), asked) == pytest.approx(chance)


def test_chance_of_macro_f1_is_what_random_guesses_score() -> None:
    task = load_task("tweetsentbr_greedy", "clean")
    golds = [" negativa"] * 600 + [" neutra"] * 300 + [" positiva"] * 100
    asked = [Document(None, "?", gold, options=(" a", " b", " c")) for gold in golds]
    generator = random.Random(0)
    labels = list(task.labels.values())
    guessed = [macro_f1([[generator.choice(labels), gold.strip()] for gold in golds]) for _ in range(200)]
    assert chance_level(task, asked) == pytest.approx(sum(guessed) / 200, abs=0.2)


def test_a_constant_similarity_is_worth_guessing() -> None:
    task = load_task("assin_sts_greedy", "clean")
    asked = [Document(None, "?", " 3", fields={"score": score}) for score in (1.0, 2.5, 4.0)]
    constant = [task.score(document, "3") for document in asked]
    assert task.aggregate(constant)["pearson"] == 0.0
    assert npm.preferred_score("assin_sts_greedy", constant, "clean") == 0.0
    assert math.isnan(npm.preferred_score("assin_sts_greedy", constant))
    [scores] = item_scores("assin_sts_greedy", "pearson", [0.0], 1.0, [constant], "clean")
    assert scores.resampled([[1.0, 1.0, 1.0]])[0] == 0.0


@pytest.mark.parametrize(("output", "pair"), [
    ("4 pontos", [3.0, 3.2]), ("nan", [3.0, 3.2]), ("1e200", [5.0, 3.2]), (" 2. ", [2.0, 3.2])])
def test_similarity_keeps_its_gold_and_its_scale(output: str, pair: list[float]) -> None:
    asked = Document(None, "?", " 3", fields={"score": 3.2})
    metrics = load_task("assin_sts_greedy", "clean").score(asked, output)
    assert metrics["pearson"] == pair
    assert metrics["unknown_pred"] == metrics["invalid"] == float(pair[0] == 3.0)


def test_native_tasks_are_counted_as_native() -> None:
    per_task = dict.fromkeys(task_names(), 0.0) | {"poscomp_greedy": 15.0}
    assert npm.mean_npm(per_task)["native"] == 0.0
    assert npm.mean_npm(per_task, "clean")["native"] == 1.0  # 12 + poscomp, hatebr and pt_hate_speech


def test_prepared_tasks_hold_the_chance_level(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    place = tmp_path / "task.json"
    examples = [{"input": f"Soma {i}", "target_scores": {"1": 0, "2": 1, "3": 0, "4": 0, "5": 0}} for i in range(20)]
    place.write_text(json.dumps({"examples": examples}))
    found = {name: Found(place, "0" * 64, "local") for name in task_spec(POOL_OF_ALL).files}
    for _ in range(2):  # built, then from the cache
        official, clean = (prepared.prepare(POOL_OF_ALL, profile, found) for profile in ("official", "clean"))
        assert (official.task.spec.random_score, clean.task.spec.random_score) == (0.25, pytest.approx(0.2))
        assert clean.task.spec.normalise(1.0) == pytest.approx(100)
        assert [request.doc_id for request in clean.requests] == list(range(20))
