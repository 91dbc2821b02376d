"""A Hugging Face model as the official harness uses it, on the HFLM of lm-evaluation-harness."""

# b: batch; s: longest prompt of the batch, in tokens

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList

from evaluation.poeta.harness import STOP
from evaluation.poeta.hf_options import OptionScorer
from evaluation.poeta.kv_cache import growing_cache
from evaluation.poeta.likelihood import OptionScores, Question, encode_questions
from evaluation.poeta.table import OFFICIAL_MAX_GEN_TOKS
from evaluation.poeta.truncation import OfficialPrompts

DEFAULT_CONTEXT_TOKENS = 4096
SHORT_ANSWER_TOKENS = 32
_NO_LIMIT_TOKENS = 1 << 30
_ARGUMENTS_OF_THE_HARNESS = ("backend", "truncation", "logits_cache", "softmax_dtype", "mixed_precision_dtype",
                             "trust_remote_code", "use_fast_tokenizer", "prefix_token_id", "gguf_file")
"""Arguments of HFLM that say how a model that is loaded is used."""


class PoetaHFLM(OfficialPrompts, HFLM):
    """HFLM without special tokens, with the official rule of truncation, and rows of a batch that stop one by one."""

    def __init__(self, pretrained: str, **kwargs: Any) -> None:
        super().__init__(pretrained, max_length=_NO_LIMIT_TOKENS, add_bos_token=False, **kwargs)
        context_tokens = getattr(self.model.config, "max_position_embeddings", DEFAULT_CONTEXT_TOKENS)
        self.context_tokens = context_tokens
        self._slice_start = OFFICIAL_MAX_GEN_TOKS - context_tokens
        self._token_ends_answer = self._find_stop_tokens()

    def as_harness_model(self, model_args: Mapping[str, Any]) -> HFLM:
        """The harness' own model around the same weights: its special tokens, limits of length and stop strings."""
        tokenizer = model_args.get("tokenizer")
        shared = {name: model_args[name] for name in _ARGUMENTS_OF_THE_HARNESS if name in model_args}
        return HFLM(self.model, tokenizer=tokenizer, batch_size=self.batch_size, **shared)

    def tok_encode(self, string: str, *args: Any, **kwargs: Any) -> list[int]:
        """Token ids of a prompt; the harness sorts by their number."""
        return self._tokens_of(string)

    def tok_batch_encode(self, strings: list[str], padding_side: str = "left", left_truncate_len: int | None = None,
                         truncation: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids and attention mask [b, s], padded on the left. The harness' own truncation does not apply."""
        rows = [self.encode_prompt(string) for string in strings]
        longest = max(map(len, rows))
        padding = [longest - len(row) for row in rows]
        ids = [[self.tokenizer.pad_token_id] * length + row for length, row in zip(padding, rows, strict=True)]
        mask = [[0] * length + [1] * (longest - length) for length in padding]
        return torch.tensor(ids), torch.tensor(mask)

    def score_options(self, questions: Sequence[Question]) -> list[OptionScores]:
        """Likelihoods of the options of each question."""
        return self._scorer.score(encode_questions(self.tokenizer, questions, self.context_tokens))

    @cached_property
    def _scorer(self) -> OptionScorer:
        return OptionScorer(self.model, self.tokenizer.pad_token_id, self.batch_size)

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str],
                        **generation_kwargs: Any) -> torch.Tensor:
        """Greedy generation [b, s + new]; a row is finished by a token with a line feed or by the model's EOS.

        Nearly all answers are short. The few rows that are not go on by themselves, so that a batch does not decode all
        of its rows up to the limit for the sake of one.
        """
        mask, num_new = generation_kwargs["attention_mask"], max_length - context.shape[1]
        cache = growing_cache(self.model.config) if self.model._supports_default_dynamic_cache() else None
        tokens = self._generate(context, mask, min(num_new, SHORT_ANSWER_TOKENS), cache)
        going_on = ~self._is_finished(tokens[:, context.shape[1]:]).any(dim=1)
        if num_new <= SHORT_ANSWER_TOKENS or not going_on.any():
            return tokens
        mask = torch.nn.functional.pad(mask, (0, SHORT_ANSWER_TOKENS), value=1)
        if cache is not None:
            cache.batch_select_indices(going_on.nonzero().flatten())
        longer = self._generate(tokens[going_on], mask[going_on], num_new - SHORT_ANSWER_TOKENS, cache)
        tokens = torch.nn.functional.pad(tokens, (0, longer.shape[1] - tokens.shape[1]),
                                         value=self.tokenizer.pad_token_id)
        tokens[going_on] = longer
        return tokens

    def _generate(self, context: torch.Tensor, mask: torch.Tensor, num_new: int,
                  cache: DynamicCache | None) -> torch.Tensor:
        return self.model.generate(
            input_ids=context,
            attention_mask=mask,
            past_key_values=cache,
            max_new_tokens=num_new,
            do_sample=False,
            temperature=None, top_p=None, top_k=None,  # an instruct model's sampling defaults would only warn
            stopping_criteria=StoppingCriteriaList([_LastTokenIn(self._token_ends_answer)]),
            pad_token_id=self.tokenizer.pad_token_id,
        )

    def _is_finished(self, new_tokens: torch.Tensor) -> torch.Tensor:
        """Which new tokens [b, new] end an answer."""
        eos = self.model.generation_config.eos_token_id
        ends = torch.tensor([] if eos is None else eos, dtype=new_tokens.dtype, device=new_tokens.device)
        return self._token_ends_answer[new_tokens] | torch.isin(new_tokens, ends)

    def _find_stop_tokens(self) -> torch.Tensor:
        """Boolean over the vocabulary: tokens with a line feed. (It is one byte, so no token holds a part of it.)"""
        num_tokens = max(len(self.tokenizer), self.model.config.get_text_config().vocab_size)
        texts = self.tokenizer.batch_decode([[token] for token in range(len(self.tokenizer))])
        has_stop = [STOP in text for text in texts]
        return torch.tensor(has_stop + [False] * (num_tokens - len(has_stop)), device=self.device)


class _LastTokenIn(StoppingCriteria):
    """Ends each row by itself; the harness' own criterion waits until all rows have met the same stop string."""

    def __init__(self, is_stop_token: torch.Tensor) -> None:
        self.is_stop_token = is_stop_token

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Whether each row [b] is finished."""
        return self.is_stop_token[input_ids[:, -1]]
