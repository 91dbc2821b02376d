import json

import pytest

from megatron_ext.data.rewriting.engines.cleaning import clean, clean_answers, storable
from megatron_ext.data.rewriting.engines.interface import Completion, Request

TEXT = "A água ferve a 100 graus.\n\nIsso se chama ebulição."


@pytest.mark.parametrize("answer", [
    TEXT,
    f"<think>\nO usuário quer…\n</think>\n\n{TEXT}",
    f"<think>\n\n</think>\n\n{TEXT}",
    f"O usuário quer um texto simples.\n</think>\n\n{TEXT}",  # the template wrote the opening tag
    f"<thinking>a</thinking><think>b</think>{TEXT}",
    f"<Reasoning>a\nb</Reasoning>\n{TEXT}",
    f"[THINK]a[/THINK]{TEXT}",
    f"◁think▷a◁/think▷{TEXT}",
    f"<|channel|>analysis<|message|>The user wants…<|channel|>final<|message|>{TEXT}",
])
def test_reasoning_is_left_out(answer):
    assert clean(answer) == TEXT


@pytest.mark.parametrize("answer", ["<think>\nO usuário quer um texto e eu", "<think>a</think>", "[THINK] bla"])
def test_reasoning_without_an_answer_is_no_answer(answer):
    assert clean(answer) == ""


def test_tags_that_the_prompt_has_are_text():
    answer = "Em HTML, <think> não existe; </think> também não."
    assert clean(answer, prompt="A etiqueta <think> não existe.") == answer
    assert clean("A análise <b>é</b> boa.") == "A análise <b>é</b> boa."


@pytest.mark.parametrize("answer, expected", [
    ("fim \ud83d fim", "fim  fim"), ("a\x00b\x07", "ab"), ("\ud83d\ude00", "😀"), ("a\r\nb\tc", "a\nb\tc"),
    ("coração \U0001f600 ção", "coração \U0001f600 ção")])
def test_what_cannot_be_stored_is_left_out(answer, expected):
    assert storable(answer) == expected
    expected.encode(), json.dumps(expected)


def test_every_answer_of_an_engine_is_cleaned():
    class Engine:
        def answer(self, take):
            yield Request("1", "Reescreva.", 0, 1), Completion(f"<think>a</think>{TEXT}\x00", 1, 2, "stop")

    ((request, completion),) = clean_answers(Engine(), list)
    assert (request.key, completion) == ("1", Completion(TEXT, 1, 2, "stop"))
