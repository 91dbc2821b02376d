"""Gold answers by likelihood: equal to plain loops and to the harness, however they are batched, cut or resumed."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

lm_eval = pytest.importorskip("lm_eval")
import torch  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

from evaluation.poeta import (  # noqa: E402
    hf_options,
    load_task,
    npm,
    run,
    sources,
    task_names,
    task_spec,
)
from evaluation.poeta.families.wsc import _document  # noqa: E402
from evaluation.poeta.gold import GOLD, item_value, questions_of  # noqa: E402
from evaluation.poeta.hf_model import PoetaHFLM  # noqa: E402
from evaluation.poeta.hf_options import OptionScorer  # noqa: E402
from evaluation.poeta.journal import JournalingLM  # noqa: E402
from evaluation.poeta.likelihood import EncodedQuestion, Question, encode_questions  # noqa: E402
from evaluation.poeta.prepared import prepare  # noqa: E402
from evaluation.poeta.prompts import build_requests  # noqa: E402
from evaluation.poeta.table import task_table  # noqa: E402
from evaluation.poeta.task import Cloze, Document, Loaded, cloze  # noqa: E402
from evaluation.run_poeta import main  # noqa: E402
from megatron_ext.errors import UserError  # noqa: E402
from megatron_ext.settings import load_settings, part_problems  # noqa: E402
from megatron_ext.settings_types import PartOf  # noqa: E402
from megatron_ext.stage import request_settings  # noqa: E402
from tests.tiny_model import write_tiny_model  # noqa: E402

TASK = "tweetsentbr_greedy"
SHARED = Path(os.environ.get("MEGATRON_EXT_SHARED", Path(__file__).parents[3] / "shared"))
REAL_DATA = SHARED / "poeta_v2" / "raw_real"
PROMPTS = ("Pergunta: qual é a capital?\nResposta:", "Curta:", "Uma frase um pouco mais comprida, e mais:" * 3,
           "Espaço no fim: ", "x" * 90 + ":")
OPTIONS = ((" A.", " B.", " C."), (" positiva", " neutra", " negativa"), (" uma só resposta livre",),
           (" a", " ab", " abc", " ação"), (" igual", " igual"))


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("POETA_DATA", raising=False)


@pytest.fixture(scope="module")
def byte_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A token a byte, a context that no question here fills."""
    return write_tiny_model(tmp_path_factory.mktemp("bytes"), context_tokens=8192)


@pytest.fixture(scope="module")
def merging_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its tokenizer merges `:` with the space after it, and `: A`: tokens that span prompt and answer."""
    from tokenizers import Tokenizer

    folder = write_tiny_model(tmp_path_factory.mktemp("merging"), context_tokens=8192)
    content = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    content["model"]["merges"] = [[":", "Ġ"], [":Ġ", "A"]]
    content["pre_tokenizer"] = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True,
                                "use_regex": False}
    for token, free in ((":Ġ", "ÿ"), (":ĠA", "þ")):
        vocabulary[token] = vocabulary.pop(free)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    assert ":ĠA" in Tokenizer.from_file(str(folder / "tokenizer.json")).encode("Resposta: A.").tokens
    return folder


def load(model: Path, batch_size: int = 4) -> PoetaHFLM:
    return PoetaHFLM(str(model), device="cpu", batch_size=batch_size, dtype="float32")


def questions() -> list[Question]:
    return [Question("t", number, prompt, options)
            for number, (prompt, options) in enumerate((p, o) for p in PROMPTS for o in OPTIONS)]


def plainly(model: Any, prompt: list[int], option: list[int]) -> float:
    """Nats of an option, one forward of prompt and option together."""
    with torch.no_grad():
        log_p = model(torch.tensor([prompt + option])).logits[0].double().log_softmax(-1)
    return -sum(float(log_p[len(prompt) - 1 + i, token]) for i, token in enumerate(option))


@pytest.mark.parametrize("cpu_tokens", [1, 1 << 20])
def test_equal_to_a_plain_loop(byte_model: Path, monkeypatch: pytest.MonkeyPatch, cpu_tokens: int) -> None:
    """With each question read by itself, and with all of them padded in batches."""
    monkeypatch.setattr(hf_options, "CPU_TOKENS", cpu_tokens)
    lm, asked = load(byte_model), questions()
    encoded = encode_questions(lm.tokenizer, asked, lm.context_tokens)
    for one, tokens, scores in zip(asked, encoded, lm.score_options(asked), strict=True):
        assert scores.nats == pytest.approx([plainly(lm.model, tokens.prompt, option) for option in tokens.options],
                                            rel=1e-4), one
        assert (scores.num_dropped_tokens, scores.splits_token) == (0, False)


@pytest.mark.parametrize("model", ["byte_model", "merging_model"])
def test_equal_to_the_harness(model: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(model)
    lm = load(folder)
    theirs = HFLM(str(folder), device="cpu", batch_size=3, dtype="float32", add_bos_token=False)
    # The harness has no answer where a merge leaves nothing behind the prompt's own tokens.
    asked = [one for one in questions() if all(len(_whole(lm, one, option)) > _own(lm, one) for option in one.options)]
    pairs = [(one.prompt, option) for one in asked for option in one.options]
    found = theirs.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in pairs], disable_tqdm=True)
    scores = lm.score_options(asked)
    assert [nats for one in scores for nats in one.nats] == pytest.approx([-value for value, _ in found], rel=1e-4)
    assert any(one.splits_token for one in scores) == (model == "merging_model")
    assert len(pairs) > 50


def _whole(lm: PoetaHFLM, one: Question, option: str) -> list[int]:
    return lm.tokenizer.encode(one.prompt + option, add_special_tokens=False)


def _own(lm: PoetaHFLM, one: Question) -> int:
    return len(lm.tokenizer.encode(one.prompt.rstrip(), add_special_tokens=False))


def test_an_option_that_a_merge_swallows_is_encoded_by_itself(merging_model: Path) -> None:
    lm = load(merging_model)
    [encoded] = encode_questions(lm.tokenizer, [Question("t", 0, "Resposta:", (" A", " B"))], 8192)
    assert encoded.splits_token
    assert lm.tokenizer.decode(encoded.options[0]) == " A"
    [scores] = lm.score_options([Question("t", 0, "Resposta:", (" A", " B"))])
    assert scores.nats[0] == pytest.approx(plainly(lm.model, encoded.prompt, encoded.options[0]), rel=1e-4)


def test_the_harness_truncates_alike(byte_model: Path) -> None:
    lm = load(byte_model)
    lm.context_tokens = 40
    theirs = HFLM(str(byte_model), device="cpu", batch_size=3, dtype="float32", add_bos_token=False, max_length=40)
    [scores] = lm.score_options([Question("t", 0, "p" * 90 + ":", (" um", " ou"))])
    found = theirs.loglikelihood([Instance("loglikelihood", {}, ("p" * 90 + ":", option), 0)
                                  for option in (" um", " ou")], disable_tqdm=True)
    assert scores.nats == pytest.approx([-value for value, _ in found], rel=1e-4)
    assert scores.num_dropped_tokens == 91 + 3 - 41
    with pytest.raises(UserError, match="t, item 7: an option of 41 tokens is longer than the model's context of 40"):
        lm.score_options([Question("t", 7, "p:", (" " + "x" * 40,))])


def test_batches_and_padding_change_nothing(byte_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = questions()
    alone = [one.nats for one in load(byte_model, 1).score_options(asked)]
    monkeypatch.setattr(hf_options, "CPU_TOKENS", 1 << 20)
    for batch_size in (2, 5, 64):
        together = [one.nats for one in load(byte_model, batch_size).score_options(asked)]
        for mine, theirs in zip(alone, together, strict=True):
            assert mine == pytest.approx(theirs, abs=1e-5, rel=1e-5)


def test_a_model_without_a_cache_gives_the_same(byte_model: Path) -> None:
    lm = load(byte_model)
    expected = [one.nats for one in lm.score_options(questions())]
    lm._scorer.has_cache = False
    for mine, theirs in zip(expected, lm.score_options(questions()), strict=True):
        assert theirs.nats == pytest.approx(mine, rel=1e-5)


SMALL = {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
         "intermediate_size": 48, "initializer_range": 0.5}
ARCHITECTURES = {
    "absolute positions": ("gpt2", {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 2,
                                    "initializer_range": 0.3}, True),
    "a sliding window": ("mistral", {**SMALL, "sliding_window": 8, "num_key_value_heads": 1}, True),
    "a window in some layers": ("gemma2", {**SMALL, "sliding_window": 8, "num_key_value_heads": 1, "head_dim": 16},
                                True),
    "positions by attention": ("bloom", {"vocab_size": 300, "hidden_size": 32, "n_layer": 2, "n_head": 2,
                                         "initializer_range": 0.3}, True),
    "states in place of keys": ("mamba", {"vocab_size": 300, "hidden_size": 32, "num_hidden_layers": 2,
                                          "state_size": 4, "initializer_range": 0.3}, False),
}


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_other_architectures_equal_a_plain_loop(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    monkeypatch.setattr(hf_options, "CPU_TOKENS", 1 << 20)  # padded batches
    name, values, has_cache = ARCHITECTURES[kind]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **values)).eval()
    scorer = OptionScorer(model, 0, max_rows=3)
    assert scorer.has_cache == has_cache
    generator = random.Random(1)

    def tokens(number: int) -> list[int]:
        return [generator.randrange(1, 300) for _ in range(number)]

    asked = [EncodedQuestion(tokens(length), [tokens(number) for number in options], 0, False)
             for length, options in ((5, (1, 1, 1)), (30, (2, 4, 1)), (17, (6,)), (1, (3, 12)), (24, (5, 5)))]
    asked.append(EncodedQuestion(tokens(9), [[7, 8, 9], [7, 8, 9, 10], [7, 8, 11]], 0, False))
    for one, scores in zip(asked, scorer.score(asked), strict=True):
        assert scores.nats == pytest.approx([plainly(model, one.prompt, option) for option in one.options], rel=1e-4)


def settings(model: Path | str, **values: Any) -> run.PoetaSettings:
    defaults = {"model": str(model), "tasks": [TASK], "allow_sample_data": True, "allow_download": False, "limit": 7,
                "batch_size": 2, "max_gen_toks": 3, "device": "cpu", "dtype": "float32",
                "scoring": ["generate", "gold"]}
    return run.PoetaSettings(**{**defaults, **values})


def gold_rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / GOLD).read_text().splitlines()]


def test_an_evaluation_holds_the_likelihoods_of_every_item(byte_model: Path, tmp_path: Path) -> None:
    artifact = run.evaluate_model(settings(byte_model), tmp_path / "scores")
    rows, lm = gold_rows(artifact.path), load(byte_model)
    assert sorted(artifact.manifest["files"]) == ["examples.jsonl", GOLD, "results.json"]
    prompts = {row["prompt_sha256"] for row in npm.load_examples(artifact.path)}
    assert len(rows) == 7 and {row["prompt_sha256"] for row in rows} == prompts
    labels = (" negativa", " neutra", " positiva")
    for row, example in zip(rows, npm.load_examples(artifact.path), strict=True):
        assert labels[row["gold"]] == example["target"]
        assert row["bytes"] == len(example["target"].encode()) == row["num_tokens"]
        assert row["nats"] == row["options"][row["gold"]]["nats"]
        assert row["rank"] == 1 + sum(one["nats"] < row["nats"] for one in row["options"])
        assert (row["num_dropped_tokens"], row["splits_token"]) == (0, False)
    found = npm.load_results(artifact.path)
    accuracy = 100 * sum(row["rank"] == 1 for row in rows) / 7
    assert found["likelihood"] == {"gold_accuracy": {"value": pytest.approx(accuracy), "num_tasks": 1}}
    task = found["tasks"][TASK]["likelihood"]
    assert task["measures"]["gold_accuracy"]["chance"] == pytest.approx(100 / 3)
    assert task["num_truncated"] == {"gold": 0, "cloze": 0}
    assert lm.context_tokens == 8192


def test_what_did_not_fit_is_told_item_by_item(tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "short", context_tokens=2048 + 300)
    artifact = run.evaluate_model(settings(model, limit=3), tmp_path / "scores")
    assert all(row["num_dropped_tokens"] > 0 for row in gold_rows(artifact.path))
    assert npm.load_results(artifact.path)["tasks"][TASK]["likelihood"]["num_truncated"]["gold"] == 3


def test_options_share_no_answer_in_the_journal(byte_model: Path, tmp_path: Path) -> None:
    lm = load(byte_model)
    journaling = JournalingLM(lambda: lm, tmp_path / "journal", 4)
    first = journaling.score_options([Question("t", 0, "Pergunta:", (" um", " dois"))])
    other = journaling.score_options([Question("t", 0, "Pergunta:", (" três", " dois"))])
    swapped = journaling.score_options([Question("t", 0, "Pergunta:", (" dois", " um"))])
    assert first[0].nats[0] != other[0].nats[0] and first[0].nats[1] == pytest.approx(other[0].nats[1], rel=1e-5)
    assert swapped[0].nats == pytest.approx(first[0].nats[::-1], rel=1e-5)
    arguments = {"until": ["\n"], "do_sample": False, "max_gen_toks": 2}
    instance = Instance("generate_until", {}, ("Pergunta:", arguments), 0, ("t", 0, 1))
    assert isinstance(journaling.generate_until([instance])[0], str)
    again = JournalingLM(lambda: pytest.fail("loaded"), tmp_path / "journal", 4)
    assert again.score_options([Question("t", 0, "Pergunta:", (" um", " dois"))]) == first


def test_a_model_that_gives_no_numbers_is_refused(byte_model: Path, tmp_path: Path,
                                                   monkeypatch: pytest.MonkeyPatch) -> None:
    lm = load(byte_model)
    lm.model.lm_head.weight.data[:] = math.nan
    monkeypatch.setattr(run, "_load_model", lambda settings: lm)
    for _ in range(2):  # and not kept
        with pytest.raises(UserError, match=r"likelihoods are not finite numbers.*dtype=float32"):
            run.evaluate_model(settings(byte_model), tmp_path / "scores")


KILLED = """
import os, signal, sys
from pathlib import Path
from evaluation.poeta import run
from evaluation.poeta.hf_model import PoetaHFLM
from tests.unit.test_gold_answers import settings

asked, plain = [], PoetaHFLM.score_options

def counted(self, questions):
    if len(asked) == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    asked.append(len(questions))
    return plain(self, questions)

PoetaHFLM.score_options = counted
run.evaluate_model(settings(sys.argv[1], reuse_answers=False), Path(sys.argv[2]))
"""


def test_killed_in_the_middle_of_the_options(byte_model: Path, tmp_path: Path,
                                             monkeypatch: pytest.MonkeyPatch) -> None:
    undisturbed = run.evaluate_model(settings(byte_model, reuse_answers=False), tmp_path / "undisturbed")
    # Not forked: torch's threads, which this process may have, would be missing in the child.
    killed = subprocess.run([sys.executable, "-c", KILLED, str(byte_model), str(tmp_path / "killed")], check=False,
                            cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=600)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    asked: list[int] = []
    plain = PoetaHFLM.score_options

    def counted(self: PoetaHFLM, questions: Any) -> Any:
        asked.append(len(questions))
        return plain(self, questions)

    monkeypatch.setattr(PoetaHFLM, "score_options", counted)
    resumed = run.evaluate_model(settings(byte_model, reuse_answers=False), tmp_path / "killed")
    assert asked == [2, 1]
    assert resumed.content_hash == undisturbed.content_hash


def test_nothing_is_loaded_when_all_answers_are_kept(byte_model: Path, tmp_path: Path,
                                                     monkeypatch: pytest.MonkeyPatch) -> None:
    first = run.evaluate_model(settings(byte_model), tmp_path / "first")
    monkeypatch.setattr(run, "_load_model", lambda settings: pytest.fail("the model was loaded"))
    again = run.evaluate_model(settings(byte_model), tmp_path / "again")
    assert again.content_hash == first.content_hash
    run.evaluate_model(settings(byte_model, limit=6), tmp_path / "the same batches, one less")
    without = run.evaluate_model(settings(byte_model, scoring=["generate"]), tmp_path / "without")
    assert not (without.path / GOLD).exists()
    assert npm.load_examples(without.path) == npm.load_examples(first.path)


def test_the_default_leaves_names_and_requests_as_they_were() -> None:
    plain = run.PoetaSettings(model="m")
    assert plain.scoring == ("generate",)
    assert "scoring" not in request_settings(plain)
    assert request_settings(run.PoetaSettings(model="m", scoring=["generate"])) == request_settings(plain)
    gold = request_settings(run.PoetaSettings(model="m", scoring=["gold", "generate"]))
    assert gold == {**request_settings(plain), "scoring": ["generate", "gold"]}


@pytest.mark.parametrize(("setting", "message"), [
    ("scoring=[generate, golden]", "scoring"), ("scoring=[gold]", "lacks generate"), ("scoring=gold", "scoring"),
    ("scoring=[]", "lacks generate"), ("device=cuda0", "no device of torch"), ("device=gpu", "no device of torch"),
    ("device=cpu:x", "no device of torch"), ("device=", "no device of torch"),
])
@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_bad_settings_are_told_before_anything_runs(byte_model: Path, tmp_path: Path, setting: str, message: str,
                                                    more: list[str], monkeypatch: pytest.MonkeyPatch,
                                                    capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["run_poeta", "--output", str(tmp_path / "scores"), f"model={byte_model}",
                                     f"tasks=[{TASK}]", "allow_sample_data=true", "allow_download=false", setting,
                                     *more])
    assert main() == 2
    told = capsys.readouterr().err
    assert message in told and "Traceback" not in told
    assert not list(tmp_path.glob("scores*"))


def test_a_backend_without_likelihoods_is_refused() -> None:
    with pytest.raises(UserError, match=r"scoring = .*backend 'local-completions'.*write backend=hf"):
        load_settings(run.PoetaSettings, None, ["model=m", "backend=local-completions", "scoring=[generate, gold]"])
    part = PartOf(lambda: run.PoetaSettings, {"model": "."})
    assert "does not give" in part_problems(part, {"scoring": ["generate", "gold"], "backend": "local-completions"})[0]


def test_a_device_that_is_not_here_is_one_clear_error(byte_model: Path, tmp_path: Path) -> None:
    name = f"cuda:{torch.cuda.device_count() + 7}"
    with pytest.raises(UserError, match=f"device = {name}: this machine has no such device.*device=cpu"):
        run.evaluate_model(settings(byte_model, device=name), tmp_path / "scores")


def test_numbers_that_are_not_finite_are_null_in_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                      byte_model: Path) -> None:
    def strict(text: str) -> Any:
        return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    row = {"metrics": {"mse": math.inf, "pearson": [math.nan, 3.2], "acc": 1.0}, "output": "1e999"}
    assert strict(npm.write_example(row))["metrics"] == {"mse": None, "pearson": [None, 3.2], "acc": 1.0}
    read = npm.read_example(npm.write_example(row))["metrics"]
    assert math.isnan(read["mse"]) and math.isnan(read["pearson"][0]) and read["pearson"][1] == 3.2
    monkeypatch.setattr(run, "_summarise_task", lambda run, rows, number: {
        "npm": math.nan, "score": -math.inf, "num_examples": 7})
    artifact = run.evaluate_model(settings(byte_model, scoring=["generate"]), tmp_path / "scores")
    assert strict((artifact.path / "results.json").read_text())["npm"]["all"] is None
    assert strict((artifact.path / "manifest.json").read_text())["counts"]["npm"] is None
    assert artifact.verify() == []


def test_cloze_forms_hold_the_question_without_its_options() -> None:
    question = Document("1", "Qual?\nA. sol\nB. lua\nResposta:", " B", options=(" A", " B"),
                        cloze=cloze("Qual?\nResposta:", ["sol", "lua "]))
    form = question.as_cloze
    assert (form.text, form.target, form.options) == ("Qual?\nResposta:", " lua", (" sol", " lua"))
    assert cloze("Qual?", ["sol", None]) is None and cloze("Qual?", ["sol", " "]) is None
    row = {"question_id": 1, "manually_fixed_correct_sentence": "Ana viu Eva e a Eva sorriu.",
           "manually_fixed_incorrect_sentence": "Ana viu Eva e a Ana sorriu."}
    schema = _document(row)
    assert schema.cloze == Cloze("Ana viu Eva e a", (" Ana sorriu.", " Eva sorriu."))
    assert schema.as_cloze.target == " Eva sorriu."


def test_cloze_prompts_have_the_same_shots_in_the_same_form() -> None:
    documents = [Document(i, f"q{i}\nA. sim{i}\nB. não{i}\nResposta:", " A", options=(" A", " B"),
                          cloze=cloze(f"q{i}\nResposta:", [f"sim{i}", f"não{i}"])) for i in range(9)]
    [request] = build_requests(load_task("arc_easy_greedy_pt"), Loaded(documents[:1], documents))
    shown = [line for line in request.prompt.split("\n") if line.startswith("q")]
    assert [line for line in request.cloze_prompt.split("\n") if line.startswith("q")] == shown
    assert request.cloze_prompt.startswith("Exemplo 1:\nq") and request.cloze_prompt.endswith("q0\nResposta:")
    assert "A." not in request.cloze_prompt and f"Resposta: sim{shown[0][1]}\n###" in request.cloze_prompt


def test_a_task_without_any_measure_or_form_says_so_in_the_table() -> None:
    specs = list(task_table().values())
    with_texts = [spec.name for spec in specs if "cloze_accuracy" in spec.likelihood_measures]
    assert len(with_texts) == 20 and len(task_names()) == 44
    assert task_spec("assin_sts_greedy").likelihood_measures == ()
    assert {spec.name for spec in specs if "gold_bits_per_byte" in spec.likelihood_measures} == {
        "faquad", "mkqa_greedy"}


def test_values_of_an_item() -> None:
    row = {"nats": 2 * math.log(2), "bytes": 4, "rank": 1, "rank_per_byte": 2}
    assert item_value("gold_bits_per_byte", row) == item_value("cloze_bits_per_byte", row) == pytest.approx(0.5)
    assert (item_value("gold_accuracy", row), item_value("cloze_accuracy", row)) == (100.0, 0.0)
    assert item_value("gold_accuracy", {**row, "rank": None}) is None


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"no raw data in {REAL_DATA}")
def test_real_items_of_four_tasks_equal_a_plain_loop_and_the_harness(tmp_path: Path) -> None:
    """At least 200 items, both forms where there are two, with a tokenizer that merges."""
    asked: list[Question] = []
    for task in ("tweetsentbr_greedy", "faquad", "wsc285_pt_greedy", "pt_hate_speech_greedy"):
        found = sources.find_raw_data([task_spec(task)], REAL_DATA, allow_download=False)
        asked += [question for _, _, question in questions_of(prepare(task, "official", found, 50))]
    assert len({(one.task.split("/")[0], one.doc_id) for one in asked}) >= 200
    model = write_tiny_model(tmp_path / "tiny", 16_384, [one.prompt[-300:] for one in asked], num_heads=1)
    lm = load(model, 8)
    scores = lm.score_options(asked)
    theirs = HFLM(str(model), device="cpu", batch_size=1, dtype="float32", add_bos_token=False)
    pairs = [(one.prompt, option) for one in asked for option in one.options]
    found = theirs.loglikelihood([Instance("loglikelihood", {}, pair, 0) for pair in pairs], disable_tqdm=True)
    assert [nats for one in scores for nats in one.nats] == pytest.approx([-value for value, _ in found], rel=1e-4)
    encoded = encode_questions(lm.tokenizer, asked, lm.context_tokens)
    for one, found in list(zip(encoded, scores, strict=True))[::7]:
        assert found.nats == pytest.approx([plainly(lm.model, one.prompt, option) for option in one.options], rel=1e-4)
