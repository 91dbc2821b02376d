import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

from megatron_ext.artifacts import produce
from megatron_ext.data.documents import Document, DocumentWriter, read_documents
from megatron_ext.data.rewriting import rewrite
from megatron_ext.data.rewriting.prompts import load_prompts
from megatron_ext.data.rewriting.rewrite import rewrite_corpus
from megatron_ext.data.rewriting.settings import RewriteSettings
from megatron_ext.errors import UserError
from megatron_ext.parts import Merge
from megatron_ext.settings import load_settings
from tests.unit.scripted_engine import scripts_the_engine_of
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
                                                 *(f"{key}={value if isinstance(value, str) else json.dumps(value)}"
                                                   for key, value in values.items())])


scripted = scripts_the_engine_of(rewrite)


def good_answer(request):
    """A rewrite of the chunk in the prompt that passes all checks."""
    for fact, words in {"sol": "A luz quente do sol banha os campos e os mares.", "chuva": "Sobre o campo chove.",
                        "vento": "Secas, as folhas voam longe com o vento.", "rios": "Todo rio termina no mar azul.",
                        "aves": "Quando esfria, as aves procuram o sul.", "voltam": "Elas regressam."}.items():
        if fact in request.prompt.split("</texto>")[0]:
            return "Aqui está o texto: " + words
    raise AssertionError(request.prompt)


def chunk_rows(folder):
    return [row for file in sorted((folder / "chunks").glob("*.parquet")) for row in pq.read_table(file).to_pylist()]


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
    ("survivors", {"a/easy": [0, 2], "b/easy": [0], "c/easy": [0, 1]}),
    ("drop_document", {"b/easy": [0], "c/easy": [0, 1]})])
def test_what_happens_to_a_document_with_a_failed_chunk(selection, model, scripted, tmp_path, failed_chunks, expected):
    scripted(lambda request: "" if "chuva" in request.prompt else good_answer(request))
    rewrites = rewrite_corpus(settings_for(selection, model, styles=["easy"], chunk_tokens=45, retries=0,
                                           failed_chunks=failed_chunks), tmp_path / "out")
    documents = pq.read_table(rewrites.path / "documents")
    assert dict(zip(documents["id"].to_pylist(), documents["chunks"].to_pylist(), strict=True)) == expected


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


@pytest.mark.parametrize("check_workers", [0, 2])
def test_few_windows_are_open_at_a_time(model, scripted, tmp_path, check_workers):
    texts = {f"d{index:02d}": f"{TEXTS['b']} {TEXTS['c']}" for index in range(12)}
    selection = make_selection(tmp_path / "selection", texts)
    num_open = []

    def answer(request):
        num_open.append(len(list((tmp_path / "out.partial" / "journals").glob("*"))))
        return "" if request.seed % 3 == 0 else good_answer(request)

    scripted(answer)
    rewrites = rewrite_corpus(settings_for(selection, model, window_tokens=50, chunk_tokens=60, batch_size=3,
                                           check_workers=check_workers), tmp_path / "out")
    assert len(list((rewrites.path / "chunks").iterdir())) == 12 and 1 <= max(num_open) <= 4
    inline = rewrite_corpus(settings_for(selection, model, window_tokens=50, chunk_tokens=60, batch_size=3),
                            tmp_path / "inline")
    assert inline.content_hash == rewrites.content_hash


def test_a_book_of_200_pages_comes_back_in_order_with_every_chunk_accounted_for(model, scripted, tmp_path):
    pages = ["\n\n".join(f"Página {page}, parágrafo {part}: " + "o vento leva as folhas secas do outono. " * 18
                          for part in range(4)) for page in range(200)]
    text = "\n\n\n".join(pages)
    selection = make_selection(tmp_path / "selection", {"book": text})

    def answer(request):
        number = request.prompt.split("Página ")[1].split(",")[0]
        return "" if number.endswith("7") else f"Na página {number} as folhas voam, e o vento sopra sobre os campos."

    scripted(answer)
    settings = settings_for(selection, model, styles=["easy"], chunk_tokens=3500, retries=0, context_tokens=10**6,
                            thresholds_file=_lenient_thresholds(tmp_path))
    rewrites = rewrite_corpus(settings, tmp_path / "out")
    rows = chunk_rows(rewrites.path)
    assert "".join(row["source"] for row in rows) == text
    assert [row["chunk"] for row in rows] == list(range(rows[0]["num_chunks"])) and len(rows) >= 170
    assert all(row["num_source_tokens"] <= 3500 for row in rows)
    assert {row["status"] for row in rows} == {"accepted", "rejected"}
    (book,) = read_documents(rewrites.path)
    assert book.text.split("\n\n") == [row["text"] for row in rows if row["status"] == "accepted"]
    summary = json.loads((rewrites.path / "summary.json").read_text())
    assert summary["selection"]["num_chunks"] == len(rows) and summary["selection"]["num_chunks_left_out"] == 0


def _lenient_thresholds(folder):
    file = folder / "thresholds.yaml"
    values = {"min_length_ratio": 0, "max_length_ratio": 9, "length_slack_words": 99, "max_copied_fraction": 1,
              "max_copied_sentences": 1, "max_kept_order": 1, "max_repeated_fraction": 1, "max_repeated_sentences": 99,
              "max_foreign_fraction": 1, "max_unknown_words": 99, "max_unknown_fraction": 1, "min_shared_fraction": 0,
              "min_number_retention": 0, "max_new_numbers": 9, "min_name_retention": 0, "max_new_names": 9,
              "check_polarity": False, "min_qa_pairs": 0}
    file.write_text(json.dumps({"default": values}), encoding="utf-8")
    return str(file)


def test_what_the_model_cannot_hold_is_split_further(selection, model, scripted, tmp_path):
    engine = scripted(lambda request: "")
    (easy,) = load_prompts(["easy"])
    context_tokens = len(easy.render(TEXTS["b"], "document_first").encode()) + 2 * len(TEXTS["b"]) + 5
    rewrites = rewrite_corpus(settings_for(selection, model, styles=["easy"], chunk_tokens=1000, retries=0,
                                           min_new_tokens=8, context_tokens=context_tokens, min_survived_fraction=0),
                              tmp_path / "out")
    for name, text in TEXTS.items():
        assert "".join(row["source"] for row in chunk_rows(rewrites.path) if row["document_id"] == name) == text
    sizes = {len(request.prompt.encode()) + request.max_new_tokens for request in engine.requests}
    assert len(engine.requests) > len(TEXTS) and max(sizes) < context_tokens


def test_the_report_shows_ledger_reasons_distributions_and_pairs(selection, model, scripted, tmp_path):
    scripted(lambda request: "" if "chuva" in request.prompt else good_answer(request))
    rewrites = rewrite_corpus(settings_for(selection, model, chunk_tokens=45), tmp_path / "out")
    page = (rewrites.path / "report.html").read_text()
    for text in ("Token ledger", "empty: 1", "length ratio", "names kept", "Secas, as folhas voam longe",
                 TEXTS["b"]):
        assert text in page
    assert page.count('class="pair"') == 15 and "http" not in page
    summary = json.loads((rewrites.path / "summary.json").read_text())["styles"]["easy"]
    assert sum(summary["distributions"]["length_ratio"]["counts"]) == summary["num_survived"] == 5
    assert sum(summary["languages"].values()) == 5 and "pt" in summary["languages"]
    assert summary["num_completion_tokens"] == 7 * 5 and summary["num_discarded_completion_tokens"] == 2 * 5


KILLS = 10


@pytest.mark.slow
def test_two_workers_killed_ten_times_at_random_moments_end_with_the_same_bytes(model, tmp_path):
    """The real program and engine, two parts side by side, SIGKILL to both."""
    selection = make_selection(tmp_path / "selection", {f"{name}{copy}": text for copy in range(6)
                                                        for name, text in TEXTS.items()})
    arguments = [f"documents={selection}", f"model={model}", f"tokenizer={model}", "chunk_tokens=45", "batch_size=4",
                 "max_new_tokens_ratio=0.5", "min_new_tokens=8", "window_tokens=150", "min_survived_fraction=0"]
    settings = load_settings(RewriteSettings, None, arguments)
    undisturbed = rewrite_corpus(settings, tmp_path / "undisturbed")
    num_answers = len(chunk_rows(undisturbed.path))

    output = tmp_path / "killed"
    chance = random.Random(num_answers)
    for moment in sorted(chance.sample(range(num_answers - 20), KILLS)):
        workers = [_start_part(output, index, arguments) for index in range(2)]
        while _num_answers(tmp_path) < moment and any(worker.poll() is None for worker in workers):
            time.sleep(0.001)
        time.sleep(chance.random() / 20)
        for worker in workers:
            with contextlib.suppress(ProcessLookupError):  # one part may have ended before the other
                os.killpg(worker.pid, signal.SIGKILL)
        assert -signal.SIGKILL in [worker.wait() for worker in workers]
    for worker in [_start_part(output, index, arguments) for index in range(2)]:
        assert worker.wait() == 0
    killed = rewrite_corpus(settings, output, Merge(2))
    assert [vars(one) for one in read_documents(killed.path)] == [vars(one) for one in read_documents(undisturbed.path)]
    assert killed.content_hash == undisturbed.content_hash and killed.verify() == []


def _start_part(output, index, arguments):
    command = [sys.executable, "-m", "tools.rewrite_corpus", "--output", str(output), "--part", f"{index}/2",
               *arguments]
    return subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL,
                            env={**os.environ, "OMP_NUM_THREADS": "1"})


def _num_answers(folder):
    """Answers that both parts have noted or written so far."""
    total = 0
    for part in (folder / "killed.parts").glob("*"):
        with contextlib.suppress(OSError):  # files move while they are counted
            total += sum(file.read_bytes().count(b"\n") for file in part.glob("journals/*.jsonl"))
            total += sum(pq.read_metadata(file).num_rows for file in part.glob("chunks/part-*.parquet"))
    return total
