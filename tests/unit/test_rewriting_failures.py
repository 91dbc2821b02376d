"""The whole stage among endpoints that misbehave: what is kept, what is recorded, what ends the run, what goes on."""

import json
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest

from megatron_ext.artifacts import Artifact
from megatron_ext.data.documents import read_documents
from megatron_ext.data.rewriting.engines.interface import Completion, failure
from megatron_ext.data.rewriting.rewrite import rewrite_corpus
from megatron_ext.errors import UserError
from megatron_ext.parts import Merge, Part
from tests.unit.misbehaving_endpoint import (
    Endpoint,
    an_error,
    finished_by,
    of_another_model,
    saying,
    without_choices,
    without_usage,
)
from tests.unit.scripted_engine import ScriptedEngine
from tests.unit.test_rewriting import (  # noqa: F401
    TEXTS,
    chunk_rows,
    good_answer,
    make_selection,
    model,
    scripted,
    settings_for,
)

CHANCE = 5


def answer(body):
    return good_answer(SimpleNamespace(prompt=body["messages"][-1]["content"]))


def sometimes(fault):
    """Every fifth request."""
    return lambda number: fault if number % CHANCE == 0 else None


@pytest.fixture
def settings(tmp_path, model):  # noqa: F811
    texts = {f"{name}{number}": text for number in range(8) for name, text in TEXTS.items()}
    selection = make_selection(tmp_path / "selection", texts)

    def of(endpoint, **values):
        return settings_for(selection, model, engine="openai", check_workers=0, chunk_tokens=45, styles=["easy"],
                            openai={"base_url": endpoint.url, "max_retries": 0, "concurrency": 4}, **values)
    return of


@pytest.mark.parametrize("fault, reason", [
    (without_choices, "request_failed"), (an_error, "request_failed"), ("html", "request_failed"),
    ("half json", "request_failed"), ("truncated", "request_failed"), (500, "request_failed"), (400, "request_failed"),
    (finished_by(None), "not_finished"), (finished_by("content_filter"), "not_finished"),
    (finished_by("length"), "cut_by_max_tokens"), (saying(lambda text: None), "empty"),
    (saying(lambda text: "<think>\nO usuário pede que eu"), "empty")])
def test_a_faulty_answer_is_a_rejected_attempt_and_the_run_goes_on(settings, tmp_path, fault, reason):
    endpoint = Endpoint(answer=answer, fault_of=sometimes(fault))
    rewrites = rewrite_corpus(settings(endpoint), tmp_path / "out")
    rows = chunk_rows(rewrites.path)
    faulty = [row for row in rows if row["reasons"]]
    assert {tuple(row["reasons"]) for row in faulty} == {(reason,)}
    assert all(row["finish_reason"] != "stop" or reason == "empty" for row in faulty)
    assert all(bool(row["problem"]) == (reason == "request_failed") for row in faulty)
    assert len(faulty) == len(endpoint.bodies) // CHANCE
    assert len([row for row in rows if row["status"] == "accepted"]) >= 46  # of 48: a second try helps
    summary = json.loads((rewrites.path / "summary.json").read_text())["styles"]["easy"]
    assert summary["num_failed_requests"] == (len(faulty) if reason == "request_failed" else 0)


@pytest.mark.parametrize("change", [
    lambda text: f"<think>\nO usuário pede.\n</think>\n\n{text}", lambda text: f"Vou reescrever.\n</think>\n{text}",
    lambda text: f"<think>\n\n</think>\n\n{text}", lambda text: text[:4] + "\x00" + text[4:],
    lambda text: text[:4] + "\ud83d" + text[4:], lambda text: f"```markdown\n{text}\n```"])
def test_what_is_not_text_of_the_answer_never_reaches_a_document(settings, tmp_path, change):
    clean = rewrite_corpus(settings(Endpoint(answer=answer)), tmp_path / "clean")
    changed = rewrite_corpus(settings(Endpoint(answer=answer, fault_of=lambda number: saying(change))),
                             tmp_path / "changed")
    assert [one.text for one in read_documents(changed.path)] == [one.text for one in read_documents(clean.path)]


@pytest.mark.parametrize("leftover", [
    "Segue a reescrita solicitada, mantendo fatos e números:\n\n{}", "Vou explicar de um jeito simples!\n\n{}",
    "{}\n\n(Nota: usei frases curtas, conforme solicitado.)"])
def test_leftovers_in_other_words_are_rejected(settings, tmp_path, leftover):
    endpoint = Endpoint(answer=answer, fault_of=lambda number: saying(lambda text: leftover.format(text)))
    rewrites = rewrite_corpus(settings(endpoint, min_survived_fraction=0), tmp_path / "out")
    assert rewrites.counts["documents"] == 0
    assert all("meta_text" in row["reasons"] for row in chunk_rows(rewrites.path))


def test_answers_without_usage_are_counted_by_nobody(settings, tmp_path):
    rewrites = rewrite_corpus(settings(Endpoint(answer=answer, fault_of=lambda number: without_usage)),
                              tmp_path / "out")
    summary = json.loads((rewrites.path / "summary.json").read_text())["styles"]["easy"]
    assert summary["num_survived"] == 48 and summary["num_completion_tokens"] == 0
    assert {row["num_completion_tokens"] for row in chunk_rows(rewrites.path)} == {None}


@pytest.mark.parametrize("fault", [without_choices, 500, "html", 422])
def test_a_run_whose_requests_fail_ends_early_and_goes_on_when_the_server_is_mended(settings, tmp_path, fault):
    broken = Endpoint(answer=answer, fault_of=lambda number: fault)
    with pytest.raises(UserError, match=r"20 of 20 requests failed, more than max_failed_fraction = 0.4"):
        rewrite_corpus(settings(broken), tmp_path / "out")
    assert len(broken.bodies) < 40
    mended = rewrite_corpus(settings(Endpoint(answer=answer)), tmp_path / "out")
    assert {row["status"] for row in chunk_rows(mended.path)} == {"accepted"}
    assert mended.content_hash == rewrite_corpus(settings(Endpoint(answer=answer)), tmp_path / "other").content_hash


def test_the_share_of_failures_is_a_setting(settings, tmp_path):
    def half(number):
        return 500 if number % 2 else None

    with pytest.raises(UserError, match="requests failed"):
        rewrite_corpus(settings(Endpoint(answer=answer, fault_of=half)), tmp_path / "out")
    rewrite_corpus(settings(Endpoint(answer=answer, fault_of=half), max_failed_fraction=0.6), tmp_path / "out")


def test_another_model_ends_the_run_and_its_answers_are_not_kept(settings, tmp_path):
    after_ten = Endpoint(answer=answer, fault_of=lambda number: of_another_model if number > 10 else None)
    with pytest.raises(UserError, match="must not mix"):
        rewrite_corpus(settings(after_ten), tmp_path / "out")
    good = Endpoint(answer=answer)
    rewrites = rewrite_corpus(settings(good), tmp_path / "out")
    assert len(good.bodies) < 48 and rewrites.settings["openai"]["model"] == "tiny"


def test_the_served_model_is_recorded_and_parts_of_two_models_do_not_merge(settings, tmp_path):
    endpoint = Endpoint(answer=answer)
    of = settings(endpoint, window_tokens=400)
    first = rewrite_corpus(of, tmp_path / "out", Part(0, 2))
    assert first.settings["openai"]["model"] == "tiny"
    endpoint.models[:] = ["other"]
    rewrite_corpus(of, tmp_path / "out", Part(1, 2))
    with pytest.raises(UserError, match=r"openai.model: made with 'other', asked for 'tiny'"):
        rewrite_corpus(of, tmp_path / "out", Merge(2))
    endpoint.shutdown()
    assert rewrite_corpus(of, tmp_path / "out", Part(0, 2)).content_hash == first.content_hash  # no server is needed


def test_the_address_of_an_endpoint_is_no_part_of_what_is_asked_for(settings, tmp_path):
    made = rewrite_corpus(settings(Endpoint(answer=answer)), tmp_path / "out")
    elsewhere = settings(Endpoint(answer=answer), max_failed_fraction=0.9, min_survived_fraction=0.5)
    assert rewrite_corpus(elsewhere, tmp_path / "out").content_hash == made.content_hash
    assert made.settings == Artifact.open(tmp_path / "out").settings


def test_a_run_without_survivors_ends_aloud(settings, tmp_path):
    spanish = Endpoint(answer=lambda body: "El gobierno decidió ayer que los ciudadanos deben pagar más impuestos.")
    with pytest.raises(UserError, match=r"0 of 48 chunks survived.*min_survived_fraction = 0.05.*other_language"):
        rewrite_corpus(settings(spanish), tmp_path / "out")
    allowed = rewrite_corpus(settings(spanish, min_survived_fraction=0), tmp_path / "out")
    assert list(read_documents(allowed.path)) == []


def test_survival_that_collapses_ends_the_run_before_its_money_is_spent(model, scripted, tmp_path):  # noqa: F811
    texts = {f"{name}{number}": text for number in range(60) for name, text in TEXTS.items()}
    engine = scripted(lambda request: "Não posso ajudar." if "perguntas" in request.prompt else good_answer(request))
    settings = settings_for(make_selection(tmp_path / "selection", texts), model, styles=["easy", "qa"],
                            chunk_tokens=45, window_tokens=1000)
    with pytest.raises(UserError, match=r"style qa: 0 of the first 100 answers passed.*Não posso ajudar"):
        rewrite_corpus(settings, tmp_path / "out")
    assert len(engine.requests) < 2 * 2 * 360 / 2


def test_nothing_is_asked_twice_at_temperature_0(model, scripted, tmp_path):  # noqa: F811
    engine = scripted(lambda request: "" if "chuva" in request.prompt else good_answer(request))
    settings = settings_for(make_selection(tmp_path / "selection", TEXTS), model, styles=["easy"], chunk_tokens=45,
                            retries=3, sampling={"temperature": 0})
    rewrite_corpus(settings, tmp_path / "out")
    assert len(engine.requests) == 6
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())["styles"]["easy"]
    assert summary["reasons"] == {"empty": 1}


def test_failures_are_asked_for_again_after_a_restart(model, monkeypatch, tmp_path):  # noqa: F811
    from megatron_ext.data.rewriting import rewrite

    class Failing(ScriptedEngine):
        def answer(self, take):
            while batch := take():
                self.requests += batch
                yield from ((request, failure("away") if "chuva" in request.prompt else
                             Completion(good_answer(request), 1, 1, "stop")) for request in batch)

    settings = settings_for(make_selection(tmp_path / "selection", TEXTS), model, styles=["easy"], chunk_tokens=45,
                            max_failed_fraction=0.1, batch_size=1)
    monkeypatch.setattr(rewrite, "open_engine", lambda *arguments: Failing(None))
    with pytest.raises(UserError, match="the last one: away"):
        rewrite_corpus(settings, tmp_path / "out")
    engine = ScriptedEngine(good_answer)
    monkeypatch.setattr(rewrite, "open_engine", lambda *arguments: engine)
    rewrite_corpus(settings, tmp_path / "out")
    assert len(engine.requests) == 1 and "chuva" in engine.requests[0].prompt
    assert pq.read_table(tmp_path / "out" / "chunks").num_rows == 6
