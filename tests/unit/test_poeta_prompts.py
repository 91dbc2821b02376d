"""Prompts: shuffling, drawing shots, rendering; raw data of our own making."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from evaluation.poeta import load_task, task_names, task_spec
from evaluation.poeta.families import FAMILIES
from evaluation.poeta.prompts import build_requests
from evaluation.poeta.raw import RawData
from evaluation.poeta.sources import SAMPLE
from evaluation.poeta.table import descriptions, task_table
from evaluation.poeta.task import Document, Loaded
from megatron_ext.errors import UserError


def documents(count: int, name: str = "d") -> list[Document]:
    return [Document(f"{name}{i}", f"texto {name}{i}:", f" resposta {name}{i}", exam=str(i % 3)) for i in range(count)]


def bigbench(tmp_path: Path, task: str, examples: list[dict]) -> Loaded:
    spec = task_spec(task)
    place = tmp_path / "task.json"
    place.write_text(json.dumps({"examples": examples}, ensure_ascii=False))
    return load_task(task).load(RawData(spec, dict.fromkeys(spec.files, place)))


def test_table_is_whole() -> None:
    specs = task_table().values()
    assert len(task_names()) == 44
    assert sum(not spec.translated for spec in specs) == 12
    assert {spec.family for spec in specs} == set(FAMILIES)
    for spec in specs:
        assert spec.description is None or spec.description in descriptions()
        assert spec.metric in load_task(spec.name).aggregations
        assert spec.random_score < spec.max_score


def test_unknown_task_names_the_nearest() -> None:
    with pytest.raises(UserError, match="did you mean 'tweetsentbr_greedy'"):
        task_spec("tweetsentbr")


def test_form_of_a_prompt() -> None:
    task = load_task("imdb_pt_greedy")
    request = build_requests(task, Loaded(documents(1), documents(2, "p")))[0]
    first, second = request.prompt.split("Exemplo 1:\ntexto p")[1][0], request.prompt.split("Exemplo 2:\ntexto p")[1][0]
    assert {first, second} == {"0", "1"}
    assert request.prompt == (
        f"{descriptions()['imdb_pt']}\n\nExemplo 1:\ntexto p{first}: resposta p{first}\n###\n"
        f"Exemplo 2:\ntexto p{second}: resposta p{second}\n###\nExemplo 3:\ntexto d0:"
    )


def test_task_without_description_begins_with_the_first_example() -> None:
    request = build_requests(load_task("logiqa_greedy"), Loaded(documents(1), documents(9)))[0]
    assert request.prompt.startswith("Exemplo 1:\n")


def test_one_generator_shuffles_and_draws() -> None:
    task = load_task("imdb_pt_greedy")
    loaded = Loaded(documents(30), documents(50, "p"))
    requests = build_requests(task, loaded)
    generator = random.Random(42)
    expected = documents(30)
    generator.shuffle(expected)
    assert [request.document for request in requests] == expected
    for request in requests:
        shots = generator.sample(loaded.pool, 2)
        assert f"{shots[0].text}{shots[0].target}\n###\nExemplo 2:\n{shots[1].text}" in request.prompt


def test_limit_changes_no_prompt() -> None:
    task = load_task("imdb_pt_greedy")
    loaded = Loaded(documents(30), documents(50, "p"))
    assert build_requests(task, loaded, limit=7) == build_requests(task, loaded)[:7]


def test_official_limit() -> None:
    assert len(build_requests(load_task("imdb_pt_greedy"), Loaded(documents(400), documents(9)))) == 300
    assert len(build_requests(load_task("imdb_pt_greedy"), Loaded(documents(400), documents(9)), limit=500)) == 300


def test_pools() -> None:
    loaded = Loaded(documents(9), documents(9))
    document = loaded.documents[4]
    assert document in load_task("math_mc_greedy").shot_pool(loaded, document)
    assert document not in load_task("wsc285_pt_greedy").shot_pool(loaded, document)
    assert {candidate.exam for candidate in load_task("enem_greedy").shot_pool(loaded, document)} == {"0", "2"}


def test_long_faquad_documents_get_one_shot_less() -> None:
    task = load_task("faquad")
    long = Document("568a6fa71815493e865cc15dc4ea5a26", "texto:", " resposta")
    assert (task.num_shots(long), task.num_shots(documents(1)[0])) == (3, 4)


def test_too_small_pool_is_a_clear_mistake() -> None:
    with pytest.raises(UserError, match=r"imdb_pt_greedy: 2 few-shot examples are needed.*holds 1"):
        build_requests(load_task("imdb_pt_greedy"), Loaded(documents(3), documents(1)))


def test_bigbench_choice(tmp_path: Path) -> None:
    loaded = bigbench(tmp_path, "broverbs_proverb_to_history_greedy", [
        {"input": "só uma opção", "target_scores": {"x": 1}},
        {"input": "Água mole\n", "target_scores": {"um": 1, "dois": 0, "três": True}, "id": "b"},
        {"input": "outro", "target_scores": {"um": 1.0, "dois": 0}},
    ])
    assert [document.id for document in loaded.documents] == ["b", 2]
    assert loaded.documents[0].text == "Provérbio:Água mole\n\nA) um\nB) dois\nC) três\nResposta:"
    assert [document.target for document in loaded.documents] == [" C)", " A)"]
    assert loaded.pool is loaded.documents


def test_bigbench_option_after_the_last_letter(tmp_path: Path) -> None:
    options = {f"o{number}": int(number == 13) for number in range(14)}
    with pytest.raises(UserError, match="no right option among its first 13"):
        bigbench(tmp_path, "math_mc_greedy", [{"input": "?", "target_scores": options}])


def test_bigbench_spelled_takes_the_first_right_answer(tmp_path: Path) -> None:
    loaded = bigbench(tmp_path, "bigbench_pt_mathematical_induction_greedy",
                      [{"input": "Prova", "target_scores": {"No": 1, "Yes": 1}}])
    assert (loaded.documents[0].text, loaded.documents[0].target) == ("Prova\nResposta:", " Não")


def test_bigbench_shuffled_options_share_one_generator(tmp_path: Path) -> None:
    examples = [{"input": str(i), "target_scores": {"causa": 1, "efeito": 0}} for i in range(20)]
    loaded = bigbench(tmp_path, "bigbench_pt_cause_and_effect_two_sentences_greedy", examples)
    generator = random.Random(1234)
    for document in loaded.documents:
        options = ["causa", "efeito"]
        generator.shuffle(options)
        assert f"\nA) {options[0]}\nB) {options[1]}\n" in document.text
        assert document.target == f" {'AB'[options.index('causa')]})"


def test_sample_of_tweetsentbr() -> None:
    task = load_task("tweetsentbr_greedy")
    name = task.spec.files[0]
    loaded = task.load(RawData(task.spec, {name: SAMPLE / name}))
    assert len(loaded.pool) >= 30
    assert {document.target for document in loaded.documents} == {" negativa", " neutra", " positiva"}
    assert all(str(document.id).startswith("sample-") for document in loaded.documents + loaded.pool)
    assert "Exemplo 31:\nMensagem: " in build_requests(task, loaded, limit=1)[0].prompt


def test_white_space_of_tweets(tmp_path: Path) -> None:
    task = load_task("tweetsentbr_greedy")
    record = {"id": "1", "sentiment": "0", "group": "test", "text": "a\n\nb\t c "}
    place = tmp_path / "tweets.json"
    place.write_text(json.dumps({"1": record, "2": {**record, "sentiment": "-"}, "3": {**record, "text": None}}))
    documents = task.load(RawData(task.spec, {task.spec.files[0]: place})).documents
    assert [document.text for document in documents] == ['Mensagem: "a b  c ".\nResposta:']
