"""The judge of accepted rewrites: what it is asked, how its answers are read, what is told of them."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from megatron_ext.artifacts import Artifact, produce
from megatron_ext.data.documents import rewrite_schema, write_parquet
from megatron_ext.data.rewriting.engines.interface import Completion, failure
from megatron_ext.data.rewriting.judge import stage
from megatron_ext.data.rewriting.judge.answers import read_answer
from megatron_ext.data.rewriting.judge.form import FINDINGS, load_form
from megatron_ext.data.rewriting.judge.pairs import labelled_pairs, sample_pairs
from megatron_ext.data.rewriting.judge.settings import JudgeSettings
from megatron_ext.data.rewriting.judge.stage import judge_rewrites
from megatron_ext.data.rewriting.judge.summary import in_words, is_informative, lines, share_of
from megatron_ext.data.rewriting.packs import languages
from megatron_ext.errors import UserError
from megatron_ext.settings import load_settings
from tests.unit.misbehaving_endpoint import Endpoint, an_error, finished_by, of_another_model, saying, without_choices
from tests.unit.scripted_engine import scripts_the_engine_of
from tests.unit.test_dry_runs import call  # noqa: F401
from tests.unit.tiny_chat_model import make_tiny_chat_model
from tools import judge_rewrites as program

FORM = load_form("pt")
FAITHFUL = json.dumps({"sem_apoio": [], "faltam": [], "contraditas": [], "veredito": "fiel"})
UNFAITHFUL = json.dumps({"sem_apoio": ["o céu é verde"], "faltam": [], "contraditas": ["não chove"],
                         "veredito": "infiel"}, ensure_ascii=False)
STYLES = ["easy", "qa"]
BAD_TEXTS = {pair.text for pair in labelled_pairs("pt") if pair.label == "bad"}
NUM_LABELLED = len(labelled_pairs("pt"))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_chat_model(tmp_path_factory.mktemp("model"))


def make_rewrites(folder, num_documents=12, num_parts=1, reverse=False):
    """Rewrites of two chunks a document in both styles; chunk 1 of every third document was rejected, and every fifth
    document was dropped whole."""
    rows = [{"document_id": f"d{number}", "chunk": chunk, "style": style,
             "status": "rejected" if chunk and number % 3 == 0 else "accepted",
             "source": f"Fonte {number}.{chunk}.", "text": f"Texto {number}.{chunk} em {style}."}
            for number in range(num_documents) for style in STYLES for chunk in range(2)]
    rows = rows[::-1] if reverse else rows

    def make(partial):
        for name in ("documents", "chunks"):
            (partial / name).mkdir(exist_ok=True)
        for part in range(num_parts):
            mine = [row for row in rows if int(row["document_id"][1:]) % num_parts == part]
            pq.write_table(pa.Table.from_pylist(mine), partial / "chunks" / f"part-{part:05d}.parquet")
            write_parquet(partial / "documents" / f"part-{part:05d}.parquet", _documents(mine))
        return {}

    produce(folder, kind="rewrites", settings={"styles": STYLES, "engine": "transformers"}, inputs={}, make=make)
    return folder


def _documents(rows):
    documents = {}
    for row in rows:
        number = int(row["document_id"][1:])
        if row["status"] == "accepted" and number % 5:
            key = (row["document_id"], row["style"])
            documents.setdefault(key, {"id": "/".join(key), "document_id": key[0], "style": key[1], "text": "x",
                                       "num_tokens": 1, "chunks": []})["chunks"].append(row["chunk"])
    return pa.Table.from_pylist(list(documents.values()), schema=rewrite_schema())


@pytest.fixture
def rewrites(tmp_path):
    return make_rewrites(tmp_path / "rewrites")


def settings_for(rewrites, **values):
    return load_settings(JudgeSettings, None, [f"rewrites={rewrites}", *(
        f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items())])


scripted = scripts_the_engine_of(stage)


def text_of(prompt):
    return prompt.split("<reescrita>\n")[1].split("\n</reescrita>")[0]


def knows(request):
    """A judge that is never wrong of labelled pairs, and finds fault with what was rewritten in style qa."""
    text = text_of(request.prompt)
    return UNFAITHFUL if text in BAD_TEXTS or " em qa." in text else FAITHFUL


def summary_of(artifact):
    return json.loads((artifact.path / "summary.json").read_text(encoding="utf-8"))


def rows_of(artifact):
    return pq.read_table(artifact.path / "pairs.parquet").to_pylist()


# What it is asked.

@pytest.mark.parametrize("language", languages())
def test_a_form_names_all_that_its_schema_asks_for(language):
    form = load_form(language)
    assert set(form.findings) == set(FINDINGS)
    for word in (*form.findings.values(), form.verdict, form.faithful, form.unfaithful):
        assert f'"{word}"' in form.instruction
    assert form.schema["required"] == [*form.findings.values(), form.verdict]
    assert "<x>" not in form.render("a", "b")


@pytest.mark.parametrize("language", languages())
def test_a_language_ships_labelled_pairs_that_the_judge_is_measured_on(language):
    pairs = labelled_pairs(language)
    kinds = {label: {pair.kind for pair in pairs if pair.label == label} for label in ("good", "bad")}
    assert kinds["bad"] == set(FINDINGS)
    assert all(sum(pair.label == label for pair in pairs) >= 24 for label in kinds)
    assert len({(pair.source, pair.text) for pair in pairs}) == len(pairs)
    by_source = {pair.source: {one.label for one in pairs if one.source == pair.source} for pair in pairs}
    assert set(map(len, by_source.values())) == {2}  # a judge that goes by the source alone knows nothing


def test_labelled_pairs_of_ones_own(tmp_path, rewrites, model):
    rows = [{"source": "A.", "text": "B.", "style": "qa", "label": "bad", "kind": "swapped"}]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert settings_for(rewrites, model=str(model), labelled_file=str(tmp_path / "own.jsonl"))
    (tmp_path / "own.jsonl").write_text(json.dumps(rows[0] | {"label": "maybe"}))
    with pytest.raises(UserError, match="label must be good or bad; it is neither in row 1"):
        settings_for(rewrites, labelled_file=str(tmp_path / "own.jsonl"))


# Sampling.

def chosen(rewrites, size, seed=0):
    return {style: [(pair.document_id, pair.chunk) for pair in sample.pairs]
            for style, sample in sample_pairs(rewrites, STYLES, size, seed).items()}


def test_the_sample_is_the_same_whatever_the_order_of_rows_and_files(tmp_path):
    first = make_rewrites(tmp_path / "one", 40)
    others = [make_rewrites(tmp_path / "many", 40, num_parts=7),
              make_rewrites(tmp_path / "turned", 40, num_parts=3, reverse=True)]
    for size in (1, 5, 1000):
        assert all(chosen(other, size) == chosen(first, size) for other in others)
    assert chosen(first, 5) != chosen(first, 5, seed=1)
    assert chosen(first, 9)["easy"][:5] == chosen(first, 5)["easy"]  # a larger sample holds the smaller one
    assert chosen(first, 5)["easy"] != chosen(first, 5)["qa"]


def test_only_what_documents_were_made_of_is_sampled(tmp_path):
    rewrites = make_rewrites(tmp_path / "rewrites", 30)
    sample = sample_pairs(rewrites, STYLES, 1000, 0)["easy"]
    expected = {(f"d{number}", chunk) for number in range(30) for chunk in range(2)
                if number % 5 and not (chunk and number % 3 == 0)}
    assert {(pair.document_id, pair.chunk) for pair in sample.pairs} == expected
    assert sample.num_accepted == len(expected)
    assert all(pair.text == f"Texto {pair.document_id[1:]}.{pair.chunk} em easy." for pair in sample.pairs)


def test_every_chunk_is_equally_likely(tmp_path):
    rewrites = make_rewrites(tmp_path / "rewrites", 12)
    counts = {}
    for seed in range(300):
        for key in chosen(rewrites, 3, seed)["easy"]:
            counts[key] = counts.get(key, 0) + 1
    assert len(counts) == sample_pairs(rewrites, STYLES, 3, 0)["easy"].num_accepted
    expected = 300 * 3 / len(counts)
    assert all(expected / 2 < count < expected * 2 for count in counts.values())


# Answers.

@pytest.mark.parametrize("text, reason", [
    ("", "empty"), (" \n", "empty"), ("fiel", "not_json"), (f"Claro! {FAITHFUL}", "not_json"),
    (f"{FAITHFUL}\nEspero ter ajudado.", "not_json"), (FAITHFUL[:-1], "not_json"), (f"```json\n{FAITHFUL}", "not_json"),
    ("[" * 100_000, "not_json"), ("null", "wrong_fields"), ("[]", "wrong_fields"), ("{}", "wrong_fields"),
    ('"fiel"', "wrong_fields"), ('{"veredito": "fiel"}', "wrong_fields"),
    (FAITHFUL.replace("}", ', "nota": 10}'), "wrong_fields"),
    (FAITHFUL.replace('"faltam": []', '"faltam": 0'), "wrong_fields"),
    (FAITHFUL.replace('"faltam": []', '"faltam": [1]'), "wrong_fields"),
    (FAITHFUL.replace('"faltam": []', '"faltam": [""]'), "wrong_fields"),
    (FAITHFUL.replace('"faltam": []', '"faltam": null'), "wrong_fields"),
    (FAITHFUL.replace('"fiel"}', '"fiel", "veredito": "infiel"}'), "wrong_fields"),
    (FAITHFUL.replace('"fiel"', '"talvez"'), "unknown_verdict"),
    (FAITHFUL.replace('"fiel"', "true"), "unknown_verdict"), (FAITHFUL.replace('"fiel"', "[]"), "unknown_verdict"),
    (FAITHFUL.replace('"fiel"', '"infiel"'), "contradicts_itself"),
    (UNFAITHFUL.replace('"infiel"', '"fiel"'), "contradicts_itself")])
def test_an_answer_that_must_be_interpreted_is_none(text, reason):
    judgement = read_answer(Completion(text, 1, 1, "stop"), FORM)
    assert judgement.reasons == (reason,)
    assert judgement.is_faithful is None


@pytest.mark.parametrize("wrap", ["{}", " {}\n", "```json\n{}\n```", "```\n{}\n```"])
def test_an_answer_in_the_form_is_read(wrap):
    def read(text):
        return read_answer(Completion(wrap.format(text), 1, 1, "stop"), FORM)

    assert read(FAITHFUL).is_faithful is True
    judgement = read(UNFAITHFUL)
    assert judgement.is_faithful is False
    assert judgement.findings == {"unsupported": ("o céu é verde",), "missing": (), "contradicted": ("não chove",)}


@pytest.mark.parametrize("completion, reason", [
    (failure("away"), "request_failed"), (Completion(FAITHFUL, 1, 1, "length"), "cut_by_max_tokens"),
    (Completion(FAITHFUL, 1, 1, "content_filter"), "not_finished")])
def test_only_a_whole_answer_counts(completion, reason):
    assert read_answer(completion, FORM).reasons == (reason,)


# Shares.

@pytest.mark.parametrize("count, total, low, high", [
    (0, 32, 0.0, 0.1072), (32, 32, 0.8928, 1.0), (10, 100, 0.0552, 0.1744), (1, 1, 0.2065, 1.0)])
def test_shares_have_wilsons_interval(count, total, low, high):
    share = share_of(count, total)
    assert (share["count"], share["of"], share["low"], share["high"]) == (count, total, low, high)
    assert share["share"] == round(count / total, 4)


def test_of_nothing_there_is_no_share():
    assert share_of(0, 0) == {"count": 0, "of": 0, "share": None, "low": None, "high": None}
    assert in_words(share_of(0, 0)) == "0 of 0"
    assert in_words(share_of(12, 198)) == "12 of 198 = 6.1 % (3.5 to 10.3)"


@pytest.mark.parametrize("wrong_of_good, wrong_of_bad, expected", [
    (0, 0, True), (3, 6, True), (16, 16, False), (0, 32, False), (32, 0, False), (32, 32, False), (10, 16, False)])
def test_a_judge_is_informative_if_it_clearly_tells_good_from_bad(wrong_of_good, wrong_of_bad, expected):
    labelled = {"good": {"wrong": share_of(wrong_of_good, 32)}, "bad": {"wrong": share_of(wrong_of_bad, 32)}}
    assert is_informative(labelled) is expected
    assert not is_informative(labelled | {"bad": {"wrong": share_of(0, 0)}})


# The stage.

def test_shares_by_style_and_the_judges_own_false_rates(rewrites, model, scripted, tmp_path):
    scripted(knows)
    judged = judge_rewrites(settings_for(rewrites, model=str(model), sample=6), tmp_path / "out")
    summary = summary_of(judged)
    easy, qa = summary["styles"]
    assert [easy["style"], qa["style"]] == STYLES
    assert (easy["unfaithful"]["count"], easy["unfaithful"]["of"]) == (0, 6)
    assert (qa["unfaithful"]["count"], qa["unfaithful"]["of"]) == (6, 6)
    assert (qa["unsupported"], qa["missing"], qa["contradicted"]) == (6, 0, 6)
    assert easy["num_accepted"] == 15 and easy["num_unparsable"] == easy["num_failed"] == 0
    assert summary["is_informative"] and not summary["judges_itself"]
    for label in ("good", "bad"):
        assert summary["labelled"][label]["wrong"] == share_of(0, NUM_LABELLED // 2)
    assert sum(kind["of"] for kind in summary["labelled"]["bad"]["kinds"].values()) == NUM_LABELLED // 2
    rows = rows_of(judged)
    assert len(rows) == NUM_LABELLED + 12
    assert [row["contradicted"] for row in rows if row["style"] == "qa" and not row["label"]] == [["não chove"]] * 6
    told = "\n".join(lines(summary))
    assert "qa: unfaithful 6 of 6 = 100.0 % (61.0 to 100.0)" in told
    assert "labelled bad pairs says faithful of 0 of 32 = 0.0 % (0.0 to 10.7)" in told


def test_a_judge_that_always_says_the_same_is_told_to_say_nothing(rewrites, model, scripted, tmp_path):
    scripted(lambda request: FAITHFUL)
    summary = summary_of(judge_rewrites(settings_for(rewrites, model=str(model), sample=6), tmp_path / "out"))
    assert summary["labelled"]["bad"]["wrong"]["share"] == 1.0
    assert not summary["is_informative"]
    assert "its shares say nothing" in "\n".join(lines(summary))


def test_an_unusable_answer_is_asked_for_again_then_counted_with_its_reason(rewrites, model, scripted, tmp_path):
    asked = []

    def answer(request):
        text = text_of(request.prompt)
        asked.append(text)
        if text.endswith("em easy.") and (asked.count(text) == 1 or text.startswith("Texto 1.")):
            return "Parece fiel."
        return knows(request)

    engine = scripted(answer)
    judged = judge_rewrites(settings_for(rewrites, model=str(model), sample=100), tmp_path / "out")
    easy = summary_of(judged)["styles"][0]
    assert easy["reasons"] == {"not_json": 2} and easy["num_unparsable"] == 2
    assert easy["unfaithful"]["of"] == easy["num_judged"] == easy["num_asked"] - 2
    rows = [row for row in rows_of(judged) if row["style"] == "easy" and not row["label"]]
    assert {row["attempt"] for row in rows} == {1}
    assert {row["is_faithful"] for row in rows if row["document_id"] == "d1"} == {None}
    seeds = [request.seed for request in engine.requests]
    assert len(set(seeds)) == len(seeds)


def test_nothing_is_asked_twice_at_temperature_0(rewrites, model, scripted, tmp_path):
    engine = scripted(lambda request: "Não sei.")
    judged = judge_rewrites(settings_for(rewrites, model=str(model), sample=3, sampling={"temperature": 0}, retries=5),
                            tmp_path / "out")
    assert len(engine.requests) == NUM_LABELLED + 6
    assert judged.counts == {"num_asked": NUM_LABELLED + 6, "num_judged": 0, "num_unparsable": NUM_LABELLED + 6,
                             "num_failed": 0}


def test_a_judge_that_is_the_rewriter_is_told(model, scripted, tmp_path):
    scripted(knows)

    def make(partial):
        (partial / "documents").mkdir()
        (partial / "chunks").mkdir()
        write_parquet(partial / "documents" / "part-00000.parquet", _documents([]))
        pq.write_table(pa.table({name: pa.array([], pa.string()) for name in ("document_id", "style", "chunk", "status",
                                                                              "source", "text")}),
                       partial / "chunks" / "part-00000.parquet")
        return {}

    produce(tmp_path / "rewrites", kind="rewrites", settings={"styles": STYLES, "engine": "transformers"},
            inputs={"model": model}, make=make)
    summary = summary_of(judge_rewrites(settings_for(tmp_path / "rewrites", model=str(model)), tmp_path / "out"))
    assert summary["judges_itself"]
    assert summary["styles"][0]["unfaithful"] == share_of(0, 0)  # nothing was accepted


# Endpoints that misbehave.

def answer_of(body):
    text = text_of(body["messages"][-1]["content"])
    return UNFAITHFUL if text in BAD_TEXTS else FAITHFUL


def at_endpoint(rewrites, endpoint, **values):
    return settings_for(rewrites, engine="openai", sample=100, **values,
                        openai={"base_url": endpoint.url, "max_retries": 0, "concurrency": 4,
                                **values.pop("openai", {})})


@pytest.mark.parametrize("fault, reason", [
    (without_choices, "request_failed"), (an_error, "request_failed"), ("html", "request_failed"),
    ("half json", "request_failed"), ("truncated", "request_failed"), (500, "request_failed"),
    (finished_by(None), "not_finished"), (finished_by("length"), "cut_by_max_tokens"),
    (saying(lambda text: None), "empty"), (saying(lambda text: f"<think>\nVeredito: {text}"), "empty"),
    (saying(lambda text: f"Claro: {text}"), "not_json")])
def test_a_faulty_answer_is_counted_and_the_run_goes_on(rewrites, tmp_path, fault, reason):
    endpoint = Endpoint(answer=answer_of, fault_of=lambda number: fault if number % 5 == 0 else None)
    judged = judge_rewrites(at_endpoint(rewrites, endpoint, retries=0), tmp_path / "out")
    groups = [*summary_of(judged)["styles"], *summary_of(judged)["labelled"].values()]
    num_faulty = len(endpoint.bodies) // 5
    assert sum(one["reasons"].get(reason, 0) for one in groups) == num_faulty
    assert judged.counts["num_failed" if reason == "request_failed" else "num_unparsable"] == num_faulty
    assert judged.counts["num_judged"] == len(endpoint.bodies) - num_faulty
    again = Endpoint(answer=answer_of, fault_of=lambda number: fault if number % 5 == 0 else None)
    retried = judge_rewrites(at_endpoint(rewrites, again), tmp_path / "retried")
    assert retried.counts["num_judged"] > judged.counts["num_judged"]


def test_reasoning_before_an_answer_is_no_part_of_it(rewrites, tmp_path):
    endpoint = Endpoint(answer=lambda body: f"<think>\nHmm, {{}}.\n</think>\n\n{answer_of(body)}")
    assert judge_rewrites(at_endpoint(rewrites, endpoint), tmp_path / "out").counts["num_unparsable"] == 0


def test_answers_are_held_to_the_schema_where_the_endpoint_can(rewrites, tmp_path):
    endpoint = Endpoint(answer=answer_of)
    judge_rewrites(at_endpoint(rewrites, endpoint), tmp_path / "out")
    assert endpoint.bodies[0]["response_format"]["json_schema"]["schema"] == FORM.schema
    assert endpoint.bodies[0]["max_tokens"] == 768
    free = Endpoint(answer=answer_of)
    judge_rewrites(at_endpoint(rewrites, free, structured_output=False), tmp_path / "free")
    assert "response_format" not in free.bodies[0]


def test_an_endpoint_that_refuses_the_schema_ends_the_run_with_the_mend(rewrites, tmp_path):
    refusing = Endpoint(answer=answer_of, fault_of=lambda number: 400)
    with pytest.raises(UserError, match=r"20 of 20 requests failed.*structured_output=false"):
        judge_rewrites(at_endpoint(rewrites, refusing), tmp_path / "out")


def test_failures_are_asked_for_again_by_the_next_run_and_nothing_else_is(rewrites, tmp_path):
    broken = Endpoint(answer=answer_of, fault_of=lambda number: 500 if number > 30 else None)
    with pytest.raises(UserError, match="requests failed"):
        judge_rewrites(at_endpoint(rewrites, broken, retries=0), tmp_path / "out")
    mended = Endpoint(answer=answer_of)
    judged = judge_rewrites(at_endpoint(rewrites, mended, retries=0), tmp_path / "out")
    assert len(mended.bodies) == judged.counts["num_asked"] - 30
    assert judged.counts["num_judged"] == judged.counts["num_asked"]
    whole = judge_rewrites(at_endpoint(rewrites, Endpoint(answer=answer_of), retries=0), tmp_path / "whole")
    assert whole.content_hash == judged.content_hash


def test_another_model_ends_the_run_and_the_served_one_is_recorded(rewrites, tmp_path):
    endpoint = Endpoint(answer=answer_of, fault_of=lambda number: of_another_model if number > 10 else None)
    with pytest.raises(UserError, match="must not mix"):
        judge_rewrites(at_endpoint(rewrites, endpoint), tmp_path / "out")
    judged = judge_rewrites(at_endpoint(rewrites, Endpoint(answer=answer_of)), tmp_path / "out")
    assert judged.settings["openai"]["model"] == "tiny"


@pytest.mark.slow
def test_killed_at_any_moment_it_goes_on_and_asks_nothing_twice(rewrites, tmp_path):
    endpoint = Endpoint(answer=answer_of, delay=0.05)
    settings = at_endpoint(rewrites, endpoint)
    config = tmp_path / "config.json"
    config.write_text(settings.model_dump_json())
    command = [sys.executable, "-m", "tools.judge_rewrites", "--output", str(tmp_path / "out"), "--config", str(config)]
    journal = tmp_path / "out.partial" / "journal.jsonl"
    chance = random.Random(1)
    for _ in range(3):
        process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL)
        before, wanted = num_lines(journal), chance.randint(3, 12)
        while process.poll() is None and num_lines(journal) < before + wanted:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    with open(journal, "ab") as stream:
        stream.write(b'{"key": "cut o')
    num_before, num_asked = num_lines(journal) - 1, len(endpoint.bodies)
    subprocess.run(command, cwd=Path(__file__).parents[2], check=True, stdout=subprocess.DEVNULL)
    judged = Artifact.open(tmp_path / "out", kind="judged_rewrites")
    assert len(endpoint.bodies) - num_asked == judged.counts["num_asked"] - num_before
    whole = judge_rewrites(settings, tmp_path / "whole")
    assert whole.content_hash == judged.content_hash


def num_lines(journal):
    return journal.read_bytes().count(b"\n") + 1 if journal.exists() else 0


# The program.

@pytest.mark.parametrize("words, told", [
    (["language=xx"], "language = 'xx': there are"), (["sample=0"], "sample = 0"),
    (["engine=openai", "openai.base_url=localhost"], "http://"), (["samples=3"], "did you mean 'sample'"),
    (["labelled_file=/nowhere"], "/nowhere: no such file"), ([], "engine = transformers: needs `model`")])
def test_a_mistake_is_one_line_and_exit_code_2(call, rewrites, tmp_path, words, told):  # noqa: F811
    code, text = call(program, "--output", tmp_path / "out", f"rewrites={rewrites}", *words)
    assert code == 2
    assert told in text and "Traceback" not in text
    assert not (tmp_path / "out").exists()


def test_only_rewrites_are_judged(call, model, tmp_path):  # noqa: F811
    produce(tmp_path / "selection", kind="selection", settings={}, inputs={}, make=lambda folder: {})
    code, text = call(program, "--output", tmp_path / "out", f"rewrites={tmp_path / 'selection'}", f"model={model}")
    assert code == 2 and "kind 'selection'; 'rewrites' is needed" in text


def test_a_dry_run_tells_how_much_will_be_asked(call, rewrites, model, tmp_path):  # noqa: F811
    code, text = call(program, "--output", tmp_path / "out", f"rewrites={rewrites}", f"model={model}", "sample=50",
                      "--dry-run")
    assert code == 0
    assert "requests: at most 164 (50 of each of 2 styles, 64 labelled pairs), and 1 more" in text
    assert not (tmp_path / "out").exists()


def test_the_program_prints_shares_beside_the_judges_false_rates(call, rewrites, model, scripted, tmp_path):  # noqa: F811
    scripted(knows)
    code, text = call(program, "--output", tmp_path / "out", f"rewrites={rewrites}", f"model={model}", "sample=6")
    assert code == 0
    assert "easy: unfaithful 0 of 6 = 0.0 % (0.0 to 39.0)" in text
    assert "the judge itself: of labelled good pairs says unfaithful of 0 of 32" in text
    assert "76 of 76 pairs judged" in text


def test_the_transformers_engine_judges_with_a_real_model(rewrites, model, tmp_path):
    """A random model says nothing that can be read: all of it is counted, none of it guessed."""
    rows = [{"source": "A.", "text": "B.", "style": "qa", "label": label} for label in ("good", "bad")]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = settings_for(rewrites, model=str(model), sample=1, max_new_tokens=16, retries=0, engine="transformers",
                            labelled_file=str(tmp_path / "own.jsonl"))
    judged = judge_rewrites(settings, tmp_path / "out")
    assert judged.counts["num_asked"] == 4
    assert judged.counts["num_unparsable"] + judged.counts["num_failed"] == 4
