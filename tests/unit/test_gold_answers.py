"""Gold answers by likelihood: equal to plain loops and to the harness, however they are batched, cut or resumed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

lm_eval = pytest.importorskip("lm_eval")
import torch  # noqa: E402
from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.models.huggingface import HFLM  # noqa: E402

from evaluation.poeta import hf_options  # noqa: E402
from evaluation.poeta.hf_model import PoetaHFLM  # noqa: E402
from evaluation.poeta.likelihood import Question, encode_questions  # noqa: E402
from megatron_ext.errors import UserError  # noqa: E402
from tests.tiny_model import write_tiny_model  # noqa: E402

TASK = "tweetsentbr_greedy"
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
