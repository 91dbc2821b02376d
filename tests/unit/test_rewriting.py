import json
import os
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

from megatron_ext.artifacts import Artifact, produce
from megatron_ext.data.documents import Document, DocumentWriter, read_documents
from megatron_ext.data.rewriting import rewrite
from megatron_ext.data.rewriting.engines import Completion
from megatron_ext.data.rewriting.prompts import load_prompts
from megatron_ext.data.rewriting.rewrite import RewriteSettings, rewrite_corpus
from megatron_ext.errors import UserError
from megatron_ext.settings import load_settings
from tests.unit.tiny_chat_model import make_tiny_chat_model

TEXTS = {
    "a": "O sol aquece a terra e o mar.\n\nA chuva cai sobre os campos verdes.\n\nO vento leva as folhas secas.",
    "b": "Os rios correm para o mar.",
    "c": "As aves voam para o sul quando o frio chega.\n\nDepois voltam.",
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_chat_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def selection(tmp_path):
    return make_selection(tmp_path / "selection", TEXTS)


def make_selection(folder, texts):
    def make(partial):
        with DocumentWriter(partial) as writer:
            for name, text in texts.items():
                writer.write(Document(name, name, "original", text, len(text.encode())))
        return {}

    produce(folder, kind="selection", settings={}, inputs={}, make=make)
    return folder


def settings_for(selection, model, **values):
    return load_settings(RewriteSettings, None, [f"documents={selection}", f"model={model}", f"tokenizer={model}",
                                                 *(f"{key}={json.dumps(value)}" for key, value in values.items())])


class ScriptedEngine:
    """Answers by a function of the prompt and the seed: the scenarios that no real model gives on demand."""

    def __init__(self, answer):
        self.answer, self.requests = answer, []

    def generate(self, requests):
        self.requests += requests
        return [Completion(text, 10, 5, "stop") for text in map(self.answer, requests)]


@pytest.fixture
def scripted(monkeypatch):
    def install(answer):
        engine = ScriptedEngine(answer)
        monkeypatch.setattr(rewrite, "open_engine", lambda name, model, sampling: engine)
        return engine
    return install


def good_answer(request):
    """A rewrite of the chunk in the prompt that passes all checks."""
    for fact, words in {"sol": "A luz quente do sol banha os campos e os mares.", "chuva": "Sobre o campo chove.",
                        "vento": "Secas, as folhas voam longe com o vento.", "rios": "Todo rio termina no mar azul.",
                        "aves": "Quando esfria, as aves procuram o sul.", "voltam": "Elas regressam."}.items():
        if fact in request.prompt.split("</texto>")[0]:
            return "Aqui está o texto: " + words
    raise AssertionError(request.prompt)


def chunk_rows(folder):
    return pq.read_table(folder / "chunks.parquet").to_pylist()


def test_accepted_chunks_are_joined_in_order_without_preamble(selection, model, scripted, tmp_path):
    scripted(good_answer)
    rewrites = rewrite_corpus(settings_for(selection, model, styles=["easy"], chunk_tokens=45), tmp_path / "out")
    documents = list(read_documents(rewrites.path))
    assert [document.id for document in documents] == ["a/easy", "b/easy", "c/easy"]
    assert documents[0].document_id == "a" and documents[0].style == "easy"
    assert documents[0].text == ("A luz quente do sol banha os campos e os mares.\n\nSobre o campo chove.\n\n"
                                 "Secas, as folhas voam longe com o vento.")
    assert documents[0].num_tokens == len(documents[0].text.encode())  # the tokenizer of the test: a token a byte
    assert rewrites.counts["documents"] == 3
    assert rewrites.counts["tokens"] == sum(document.num_tokens for document in documents)


def test_every_chunk_is_accounted_for_with_its_reasons(selection, model, scripted, tmp_path):
    scripted(lambda request: "" if "chuva" in request.prompt else good_answer(request))
    rewrites = rewrite_corpus(settings_for(selection, model, styles=["easy", "hard"], chunk_tokens=45, retries=1),
                              tmp_path / "out")
    rows = chunk_rows(rewrites.path)
    by_style = [row for row in rows if row["style"] == "easy" and row["document_id"] == "a"]
    assert [(row["chunk"], row["attempt"], row["status"]) for row in by_style] == [
        (0, 0, "accepted"), (1, 0, "rejected"), (1, 1, "rejected"), (2, 0, "accepted")]
    assert by_style[1]["reasons"] == ["empty"] and by_style[1]["seed"] != by_style[2]["seed"]
    assert "".join(row["source"] for row in by_style if row["attempt"] == 0) == TEXTS["a"]
    summary = json.loads((rewrites.path / "summary.json").read_text())
    assert summary["styles"]["easy"]["num_chunks"] == 6 and summary["styles"]["easy"]["num_survived"] == 5
    assert summary["styles"]["easy"]["reasons"] == {"empty": 1}
    assert summary["rewrites"] | {"tokens": 0} == {"complete": 4, "partial": 2, "dropped": 0, "empty": 0, "tokens": 0}


def test_a_failed_chunk_is_asked_for_again_with_another_seed(selection, model, scripted, tmp_path):
    failed = set()

    def answer(request):
        if "rios" in request.prompt and request.prompt not in failed:
            failed.add(request.prompt)
            return "Desculpe, não posso ajudar."
        return good_answer(request)

    engine = scripted(answer)
    rewrites = rewrite_corpus(settings_for(selection, model, styles=["easy"], chunk_tokens=45), tmp_path / "out")
    summary = json.loads((rewrites.path / "summary.json").read_text())["styles"]["easy"]
    assert summary["num_saved_by_retry"] == 1 and summary["num_survived"] == summary["num_chunks"]
    assert "refusal" in summary["first_attempt_reasons"] and summary["reasons"] == {}
    seeds = [request.seed for request in engine.requests]
    assert len(set(seeds)) == len(seeds) == 7


@pytest.mark.parametrize("failed_chunks, expected", [
    ("survivors", ["a/easy", "b/easy", "c/easy"]), ("drop_document", ["b/easy", "c/easy"])])
def test_what_happens_to_a_document_with_a_failed_chunk(selection, model, scripted, tmp_path, failed_chunks, expected):
    scripted(lambda request: "" if "chuva" in request.prompt else good_answer(request))
    rewrites = rewrite_corpus(settings_for(selection, model, styles=["easy"], chunk_tokens=45, retries=0,
                                           failed_chunks=failed_chunks), tmp_path / "out")
    assert [document.id for document in read_documents(rewrites.path)] == expected


def test_no_survivor_is_no_error(selection, model, scripted, tmp_path):
    scripted(lambda request: "")
    rewrites = rewrite_corpus(settings_for(selection, model), tmp_path / "out")
    assert list(read_documents(rewrites.path)) == [] and rewrites.counts["documents"] == 0


def test_a_trial_run_takes_the_same_documents_in_any_order(selection, model, scripted, tmp_path):
    scripted(good_answer)
    chosen = []
    for name, texts in {"given": TEXTS, "turned": dict(reversed(TEXTS.items()))}.items():
        place = make_selection(tmp_path / f"selection-{name}", texts)
        rewrites = rewrite_corpus(settings_for(place, model, styles=["easy"], chunk_tokens=45, max_documents=2,
                                               max_chunks_per_document=1), tmp_path / name)
        chosen.append({row["document_id"] for row in chunk_rows(rewrites.path)})
        assert all(row["chunk"] == 0 for row in chunk_rows(rewrites.path))
    assert chosen[0] == chosen[1] and len(chosen[0]) == 2


def test_no_document_within_the_bound_is_a_users_mistake(selection, model, tmp_path):
    with pytest.raises(UserError, match="the shortest has 26 tokens"):
        rewrite_corpus(settings_for(selection, model, max_document_tokens=5), tmp_path / "out")


def test_custom_styles_and_their_mistakes(tmp_path):
    (tmp_path / "poem.md").write_text("version: 3\n\nEscreva um poema.\n", encoding="utf-8")
    (prompt, easy) = load_prompts(["poem", "easy"], tmp_path)
    assert (prompt.style, prompt.version, prompt.instruction) == ("poem", 3, "Escreva um poema.")
    assert prompt.render(" x\n", "document_first") == "<texto>\nx\n</texto>\n\nEscreva um poema."
    assert prompt.render("x", "instruction_first") == "Escreva um poema.\n\n<texto>\nx\n</texto>"
    assert easy.version >= 1
    with pytest.raises(UserError, match="easy, hard, medium, poem, qa"):
        load_prompts(["haiku"], tmp_path)
    (tmp_path / "poem.md").write_text("Escreva um poema.\n", encoding="utf-8")
    with pytest.raises(UserError, match="version"):
        load_prompts(["poem"], tmp_path)
    with pytest.raises(UserError, match="twice"):
        load_settings(RewriteSettings, None, ["documents=a", "model=b", "tokenizer=c", "styles=[qa, qa]"])


def test_a_changed_prompt_is_another_request(selection, model, scripted, tmp_path):
    scripted(good_answer)
    prompts = tmp_path / "prompts"
    prompts.mkdir()
    settings = settings_for(selection, model, styles=["easy"], prompts_folder=str(prompts), chunk_tokens=45)
    rewrite_corpus(settings, tmp_path / "out")
    (prompts / "easy.md").write_text("version: 2\nResuma.\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"prompts\.easy\.version"):
        rewrite_corpus(settings, tmp_path / "out")


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_with_the_same_bytes(model, tmp_path):
    """The real program and engine, killed with SIGKILL after each of several batches."""
    selection = make_selection(tmp_path / "selection", TEXTS)
    arguments = [f"documents={selection}", f"model={model}", f"tokenizer={model}", "chunk_tokens=45", "batch_size=2",
                 "max_new_tokens_ratio=0.5", "min_new_tokens=8"]
    undisturbed = rewrite_corpus(load_settings(RewriteSettings, None, arguments), tmp_path / "undisturbed")

    output, partial = tmp_path / "killed", tmp_path / "killed.partial"
    command = [sys.executable, "-m", "tools.rewrite_corpus", "--output", str(output), *arguments]
    for num_batches in (1, 5, 13):
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
        while len(list(partial.glob("completions/*/batch_*.json"))) < num_batches and process.poll() is None:
            time.sleep(0.001)
        os.killpg(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not output.exists()
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    assert "were done before, going on" in text
    assert Artifact.open(output).content_hash == undisturbed.content_hash
    assert Artifact.open(output).verify() == []
