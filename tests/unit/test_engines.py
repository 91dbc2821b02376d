import pytest
import torch

from megatron_ext.data.rewriting.engines.interface import Request, Sampling
from megatron_ext.data.rewriting.engines.transformers_engine import TransformersEngine, draw
from megatron_ext.errors import UserError
from tests.unit import engine_contract
from tests.unit.tiny_chat_model import make_tiny_chat_model

PROMPTS = ["Reescreva: o gato subiu no telhado.", "Reescreva: a água ferve.", "Traduza.", "Reescreva: x" * 9]
REQUESTS = [Request(str(seed), prompt, seed, 8 + seed) for seed, prompt in enumerate(PROMPTS)]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_tiny_chat_model(tmp_path_factory.mktemp("model"))


def generate(engine, requests):
    """Completions in the order of the requests, which are one batch."""
    answers = engine_contract.answers(engine, requests)
    return [answers[request.key] for request in requests]


@pytest.fixture(scope="module")
def engine(model):
    return TransformersEngine(model, Sampling(temperature=1.0, top_p=0.95))


def test_greedy_completions_are_those_of_plain_transformers(model):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    plain, tokenizer = AutoModelForCausalLM.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    completions = generate(TransformersEngine(model, Sampling(temperature=0)), REQUESTS)
    for request, completion in zip(REQUESTS, completions, strict=True):
        ids = tokenizer(f"<|user|>{request.prompt}<|end|><|assistant|>", return_tensors="pt").input_ids
        expected = plain.generate(ids, max_new_tokens=request.max_new_tokens, do_sample=False, eos_token_id=0,
                                  pad_token_id=0)[0, ids.shape[1]:].tolist()
        stopped = expected[-1] == 0
        expected = expected[:-1] if stopped else expected
        assert completion["text"] == tokenizer.decode(expected, skip_special_tokens=True)
        assert completion["num_prompt_tokens"] == ids.shape[1]
        assert completion["num_tokens"] == len(expected)
        assert completion["finish_reason"] == ("stop" if stopped else "length")


def test_a_request_gives_the_same_completion_alone_and_in_any_batch(engine):
    together = generate(engine, REQUESTS)
    assert generate(engine, REQUESTS) == together
    assert [generate(engine, [request])[0] for request in REQUESTS] == together
    assert generate(engine, REQUESTS[::-1]) == together[::-1]
    assert generate(engine, REQUESTS[:2]) == together[:2]


def test_another_seed_gives_another_completion(engine):
    requests = [Request(str(seed), "Reescreva.", seed, 12) for seed in range(5)]
    texts = {completion["text"] for completion in generate(engine, requests)}
    assert len(texts) > 1


def test_each_request_keeps_its_own_bound(engine):
    completions = generate(engine, REQUESTS)
    for request, completion in zip(REQUESTS, completions, strict=True):
        assert completion["num_tokens"] <= request.max_new_tokens
        assert completion["finish_reason"] == "stop" or completion["num_tokens"] == request.max_new_tokens
    assert any(completion["finish_reason"] == "length" for completion in completions)


def test_a_prompt_that_the_model_cannot_hold_is_a_failure_and_the_others_are_answered(engine):
    too_long, fine = generate(engine, [Request("long", "x" * 2040, 0, 30), REQUESTS[0]])
    assert "chunk_tokens" in too_long["problem"] and too_long["finish_reason"] == "error"
    assert fine == generate(engine, REQUESTS[:1])[0]


def test_arguments_reach_the_chat_template(tmp_path):
    template = "{% if formal %}<|user|>Formal. {% endif %}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    model = make_tiny_chat_model(tmp_path, chat_template=template)
    plain, formal = (TransformersEngine(model, Sampling(temperature=0), arguments)
                     for arguments in (None, {"formal": True}))
    assert generate(formal, REQUESTS)[0]["num_prompt_tokens"] > generate(plain, REQUESTS)[0]["num_prompt_tokens"]


def test_a_model_without_chat_template_is_refused(tmp_path):
    with pytest.raises(UserError, match="chat template"):
        TransformersEngine(make_tiny_chat_model(tmp_path, chat_template=None), Sampling())


@pytest.mark.parametrize("vocabulary", [20, 3000])  # 3000 flat logits: the nucleus is larger than the first candidates
@pytest.mark.parametrize("top_p", [0.5, 0.9, 1.0])
def test_tokens_are_drawn_from_the_nucleus_with_their_probabilities(vocabulary, top_p):
    logits = torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(1))
    probabilities = (logits / 0.7).softmax(dim=1)[0].double()
    sorted_probabilities, order = probabilities.sort(descending=True)
    size = int((sorted_probabilities.cumsum(0) < top_p - 1e-12).sum()) + 1
    expected = torch.zeros(vocabulary, dtype=torch.float64)
    kept = order[:size]
    expected[kept] = probabilities[kept] / probabilities[kept].sum()

    num_draws = 4_000
    uniforms = (torch.arange(num_draws, dtype=torch.float64) + 0.5) / num_draws  # a grid: frequencies without noise
    drawn = torch.cat([draw(logits.expand(len(part), -1), part, Sampling(temperature=0.7, top_p=top_p))
                       for part in uniforms.split(500)])
    frequencies = torch.bincount(drawn, minlength=vocabulary).double() / num_draws
    assert (frequencies - expected).abs().max() < 1.5 / num_draws + 1e-6


def test_uniform_numbers_at_the_edges_stay_in_the_vocabulary():
    logits = torch.tensor([[0.0, 1.0, 2.0], [5.0, 0.0, 0.0]])
    assert draw(logits, torch.tensor([0.0, 1 - 1e-16], dtype=torch.float64), Sampling()).tolist() == [2, 0]
