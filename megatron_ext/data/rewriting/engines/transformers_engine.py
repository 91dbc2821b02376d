"""Hugging Face transformers: runs everywhere, one batch after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_ext.data.rewriting.engines.chat import Encoded, encode_batch, load_chat_tokenizer
from megatron_ext.data.rewriting.engines.interface import STOP, Answer, Completion, Sampling, TakeBatch
from megatron_ext.data.workers import available_cores

if TYPE_CHECKING:
    import torch

_FIRST_CANDIDATES = 1024


class TransformersEngine:
    """On the CPU in float32, on all cores; requests that are taken together are one batch.

    What all prompts of a batch begin with (the instruction, where it comes first) goes through the model once.
    """

    def __init__(self, model: Path, sampling: Sampling, template_arguments: Mapping[str, Any] | None = None) -> None:
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig
        from transformers.utils import logging

        logging.disable_progress_bar()
        torch.set_num_threads(available_cores())
        self._sampling, self._template_arguments = sampling, template_arguments or {}
        self._tokenizer = load_chat_tokenizer(model)
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, local_files_only=True).eval()
        self._stop_ids = _stop_ids(self._model.generation_config, self._tokenizer)
        # The model's own sampling defaults (penalties, top-k) must not mix with the settings of the run.
        self._model.generation_config = GenerationConfig(
            eos_token_id=self._stop_ids, pad_token_id=self._tokenizer.pad_token_id, do_sample=False)

    def answer(self, take: TakeBatch) -> Iterator[Answer]:
        """See Engine."""
        while batch := take():
            limit = getattr(self._model.config, "max_position_embeddings", None)
            fitting, failures = encode_batch(self._tokenizer, batch, self._template_arguments, limit)
            yield from failures
            if fitting:
                yield from zip([request for request, _ in fitting], self._generate(fitting), strict=True)

    def _generate(self, encoded: Encoded) -> list[Completion]:
        """Answer the requests as one batch, in their order."""
        import torch
        from transformers import LogitsProcessorList, StoppingCriteriaList

        requests, prompts = [request for request, _ in encoded], [ids for _, ids in encoded]
        num_shared = _num_shared_ids(prompts)
        batch = self._pad_after(num_shared, prompts)
        num_prompt = batch["input_ids"].shape[1]
        limits = torch.tensor([request.max_new_tokens for request in requests])
        processors = LogitsProcessorList()
        if self._sampling.temperature > 0:
            processors.append(SeededSampler(self._sampling, [(r.seed, r.max_new_tokens) for r in requests]))
        with torch.inference_mode():
            rows = self._model.generate(
                **batch, past_key_values=self._cache(prompts[0][:num_shared], len(prompts)),
                max_new_tokens=int(limits.max()), logits_processor=processors,
                stopping_criteria=StoppingCriteriaList([lambda ids, scores, **_: ids.shape[1] - num_prompt >= limits]))
        return [self._completion(row[:limit], len(prompt))
                for row, limit, prompt in zip(rows[:, num_prompt:].tolist(), limits.tolist(), prompts, strict=True)]

    def _pad_after(self, num_shared: int, prompts: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """input_ids and attention_mask [b, s]: the shared ids, then padding, then the rest of each prompt."""
        import torch

        length = max(len(ids) for ids in prompts)
        input_ids = torch.full((len(prompts), length), self._tokenizer.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        for row, ids in enumerate(prompts):
            for place in (slice(0, num_shared), slice(length - len(ids) + num_shared, length)):
                attention_mask[row, place] = 1
            input_ids[row, :num_shared] = torch.tensor(ids[:num_shared])
            input_ids[row, length - len(ids) + num_shared:] = torch.tensor(ids[num_shared:])
        return {"input_ids": input_ids, "attention_mask": attention_mask}

    def _cache(self, shared_ids: Sequence[int], num_rows: int) -> Any:
        """Keys and values of the ids with which all prompts begin, computed once for all rows."""
        import torch
        from transformers import DynamicCache

        cache = DynamicCache(config=self._model.config)
        if shared_ids:
            self._model(input_ids=torch.tensor([shared_ids]), past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache.batch_repeat_interleave(num_rows)
        return cache

    def _completion(self, ids: list[int], num_prompt_tokens: int) -> Completion:
        length = next((index for index, token in enumerate(ids) if token in self._stop_ids), None)
        text = self._tokenizer.decode(ids[:length], skip_special_tokens=True)
        return Completion(text, num_prompt_tokens, len(ids[:length]), "length" if length is None else STOP)


def _num_shared_ids(prompts: Sequence[Sequence[int]]) -> int:
    """Length of the longest common beginning that leaves each prompt an id of its own."""
    shortest = min(len(ids) for ids in prompts)
    first = prompts[0]
    return next((place for place in range(shortest - 1) if any(ids[place] != first[place] for ids in prompts)),
                shortest - 1)


class SeededSampler:
    """A logits processor after which greedy search draws each row from softmax(logits / temperature) cut to top-p.

    Inverse transform sampling: the tokens in order of probability divide the unit interval, a uniform number chooses
    one. Row i takes its numbers from a generator of its own, so that what is drawn for a request does not depend on
    the other requests of its batch.
    """

    def __init__(self, sampling: Sampling, rows: Sequence[tuple[int, int]]) -> None:
        """`rows`: (seed, number of tokens to draw at most) of each request."""
        import torch

        self._sampling = sampling
        self._step = 0
        num_steps = max(num_draws for _, num_draws in rows)
        self._uniforms = torch.stack([  # [b, num_steps]
            torch.rand(num_steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            for seed, _ in rows])

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Logits [b, vocabulary] -> 0 for the token drawn, -inf for all others."""
        tokens = draw(scores, self._uniforms[:, self._step], self._sampling)
        self._step += 1
        return scores.new_full(scores.shape, float("-inf")).scatter_(1, tokens[:, None], 0.0)


def draw(logits: torch.Tensor, uniforms: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """One token a row of logits [b, v], chosen by uniform numbers [b] in [0, 1) from the nucleus of Holtzman et al.

    (arXiv 1904.09751): the smallest set of most likely tokens with a probability of at least `top_p`.
    """
    scaled = logits.double() / sampling.temperature
    normalizer = scaled.logsumexp(dim=1, keepdim=True)
    # Sorting 49,152 logits costs 12 times what the 1,024 largest cost, and they nearly always hold the nucleus.
    values, tokens = scaled.topk(min(_FIRST_CANDIDATES, scaled.shape[1]))
    probabilities = (values - normalizer).exp()
    if bool((probabilities.sum(dim=1) < sampling.top_p).any()):
        values, tokens = scaled.sort(dim=1, descending=True)
        probabilities = (values - normalizer).exp()
    cumulative = probabilities.cumsum(dim=1)
    probabilities[cumulative - probabilities >= sampling.top_p] = 0.0
    cumulative = probabilities.cumsum(dim=1)
    chosen = (cumulative <= uniforms[:, None] * cumulative[:, -1:]).sum(dim=1, keepdim=True)
    return tokens.gather(1, chosen.clamp(max=tokens.shape[1] - 1)).squeeze(1)


def _stop_ids(generation_config: Any, tokenizer: Any) -> list[int]:
    configured = generation_config.eos_token_id
    ids = configured if isinstance(configured, list) else [configured]
    return sorted({tokenizer.eos_token_id, *(token for token in ids if token is not None)})
