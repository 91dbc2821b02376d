"""Answer extraction and metrics, on cases that tell the tasks' rules apart."""

from __future__ import annotations

import math
import random
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.poeta import load_task
from evaluation.poeta.families.exams import clean_spaces, find_letter
from evaluation.poeta.families.faquad import f1_of
from evaluation.poeta.families.mkqa import best_f1
from evaluation.poeta.families.squad import normalise_answer
from evaluation.poeta.metrics import macro_f1, mean_stderr, pearson, weighted_f1
from evaluation.poeta.task import Document

LABELS = st.sampled_from(["a", "b", "c", ""])


def score(task: str, target: str, output: str, **fields: object) -> dict:
    return load_task(task).score(Document("id", "text", target, fields=fields), output)


@pytest.mark.parametrize(("output", "letter"), [
    ("A. ou B.", "B."), (" letra c)", "C."), ("A) ou b) e D", "B."), ("do Brasil", "B."), ("segunda", "B."),
    ("nada", ""), ("a resposta é c", ""),
])
def test_letter_with_a_dot(output: str, letter: str) -> None:
    assert find_letter(output, ["primeira", "segunda"]) == letter


@pytest.mark.parametrize(("output", "accuracy", "invalid"), [
    (" B)", 1, 0), ("b)", 1, 0), ("A) ou B)", 0, 0), ("é a B) mesmo", 1, 0), ("B", 0, 1), ("B.", 0, 1), ("", 0, 1),
])
def test_bigbench_letter(output: str, accuracy: float, invalid: float) -> None:
    assert score("math_mc_greedy", " B)", output) == {"acc": accuracy, "invalid": invalid}


def test_bigbench_word_is_found_inside_words() -> None:
    assert score("mina_br_greedy", " Sim", "assim não")["acc"] == 1
    assert score("mina_br_greedy", " Não", "assim não")["acc"] == 0
    assert score("mina_br_greedy", " Não", "talvez") == {"acc": 0, "invalid": 1}


def test_label_must_be_the_whole_output() -> None:
    assert score("tweetsentbr_greedy", " neutra", " NEUTRA ")["acc"] == 100
    assert score("tweetsentbr_greedy", " neutra", "neutra.") == {
        "acc": 0, "f1-macro": ["neutra.", "neutra"], "f1-weighted": ["neutra.", "neutra"], "invalid": 1}


def test_massive_minds_case() -> None:
    assert score("massive_greedy", " IoT", "IoT")["acc"] == 100
    assert score("massive_greedy", " IoT", "iot")["acc"] == 0


def test_offensive_label_counts_for_accuracy_and_whole_output_for_f1() -> None:
    scores = score("hatebr_binary_greedy", " ofensiva", "é ofensiva")
    assert scores["acc"] == 1
    assert scores["f1-macro"] == ["é ofensiva", "ofensiva"]
    assert score("hatebr_binary_greedy", " ofensiva", "inofensiva")["acc"] == 0


def test_similarity_that_is_no_number_also_replaces_the_gold() -> None:
    assert score("assin_sts_greedy", " 3", "4 pontos", score=3.2)["pearson"] == [1.0, 5.0]
    assert score("assin_sts_greedy", " 3", " 4. ", score=3.0) == {
        "mse": 1.0, "pearson": [4.0, 3.0], "unknown_pred": 0, "invalid": 0}
    assert score("assin_sts_greedy", " 3", "1e200", score=3.0)["mse"] == math.inf


@pytest.mark.parametrize(("output", "accuracy"), [("a", 1), ("A.", 1), ("resposta.", 1), ("A)", 0), ("b. a.", 0)])
def test_arc(output: str, accuracy: float) -> None:
    assert score("arc_easy_greedy_pt", " A", output, labels=["A", "B"])["acc"] == accuracy


@pytest.mark.parametrize(("output", "accuracy"), [("A. B.", 1), ("B", 1), ("A Bela", 1), ("A. Bela", 0), ("b.", 0)])
def test_wsc(output: str, accuracy: float) -> None:
    assert score("wsc285_pt_greedy", " B.", output)["acc"] == accuracy


def test_squad_normalisation_order() -> None:
    assert normalise_answer("  A-b, Os  “três” ") == "ab “três”"


def test_faquad_compares_sets_of_words() -> None:
    assert f1_of("sim sim sim", ["sim"]) == 1
    assert f1_of("casa azul", ["casa verde", "azul"]) == pytest.approx(2 / 3)
    assert f1_of("o", ["a"]) == 1


def test_mkqa_binary_answers_go_by_their_beginning() -> None:
    def em(output: str) -> float:
        return score("mkqa_greedy", " sim", output, type="binary", golds=["yes"])["best_em"]["em"]

    assert [em("Simples"), em(" sim"), em("não"), em("é sim")] == [1, 1, 0, 0]


def test_mkqa_best_f1_takes_the_best_prefix() -> None:
    records = [{"answerable": False, "answered": True, "f1": 0.0}, {"answerable": True, "answered": True, "f1": 0.5}]
    assert best_f1(records) == 50.0  # silence is right for the first: 1, then -1 and +0.5 make it worse
    assert best_f1(records[1:]) == 50.0
    assert best_f1([{"answerable": True, "answered": True, "f1": 1 / 3}] * 3) == 33.33


def test_clean_spaces() -> None:
    assert clean_spaces(" \n a \n\n b  c\td\n") == "a b c\td "


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(LABELS, LABELS), min_size=1))
def test_f1_is_that_of_scikit_learn(pairs: list[tuple[str, str]]) -> None:
    from sklearn.metrics import f1_score

    predictions, golds = zip(*pairs, strict=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for ours, average in ((macro_f1, "macro"), (weighted_f1, "weighted")):
            theirs = f1_score(golds, predictions, labels=sorted(set(golds)), average=average)
            assert ours(pairs) == pytest.approx(100 * theirs)


def test_pearson_is_nan_where_undefined() -> None:
    generator = random.Random(0)
    pairs = [[generator.random(), generator.random()] for _ in range(20)]
    assert abs(pearson(pairs)) < 1
    assert pearson([[2 * gold, gold] for _, gold in pairs]) == pytest.approx(1)
    assert math.isnan(pearson([[1.0, gold] for _, gold in pairs]))
    assert math.isnan(pearson([*pairs, [math.inf, 1.0]]))
    assert math.isnan(pearson(pairs[:1]))


def test_stderr_of_a_mean() -> None:
    assert mean_stderr([1, 0, 0, 1]) == pytest.approx(math.sqrt(1 / 3 / 4))
    assert mean_stderr([1]) == 0


def test_metrics_of_some_documents_only() -> None:
    task = load_task("enem_greedy")
    examples = [{"acc": 1.0, "2010": 1.0, "unknown_pred": 0.0}, {"acc": 0.0, "2011": 0.0, "unknown_pred": 0.0}]
    aggregated = task.aggregate(examples)
    assert (aggregated["acc"], aggregated["2010"], aggregated["2011"]) == (0.5, 1.0, 0.0)
    assert "2012" not in aggregated
