"""The chat format of a model: prompts to token ids, and which tokens end an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_ext.data.model_folder import load_tokenizer
from megatron_ext.data.rewriting.engines.interface import Answer, Request, failure
from megatron_ext.errors import UserError


def load_chat_tokenizer(model: Path) -> Any:
    """The tokenizer of an instruct model. Raises UserError when it has no chat template."""
    tokenizer = load_tokenizer(model)
    if not tokenizer.chat_template:
        raise UserError(f"{model}: its tokenizer has no chat template; a rewriter must be an instruct model")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def encode_prompts(tokenizer: Any, requests: Sequence[Request],
                   template_arguments: Mapping[str, Any] | None = None) -> list[list[int]]:
    """Ids of the prompts with the chat template around them, which is given `template_arguments`."""
    texts = [tokenizer.apply_chat_template([{"role": "user", "content": request.prompt}], tokenize=False,
                                           add_generation_prompt=True, **(template_arguments or {}))
             for request in requests]
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


Encoded = list[tuple[Request, list[int]]]


def encode_batch(tokenizer: Any, requests: Sequence[Request], template_arguments: Mapping[str, Any],
                 limit: int | None) -> tuple[Encoded, list[Answer]]:
    """Requests with the ids of their prompts, and failures for those that do not fit into `limit` tokens."""
    encoded = list(zip(requests, encode_prompts(tokenizer, requests, template_arguments), strict=True))
    fitting = [(request, ids) for request, ids in encoded
               if limit is None or len(ids) + request.max_new_tokens <= limit]
    kept = {request.key for request, _ in fitting}
    return fitting, [(request, failure(f"the prompt and its completion need {len(ids) + request.max_new_tokens:,} "
                                       f"tokens, the model holds {limit:,}; use smaller chunk_tokens"))
                     for request, ids in encoded if request.key not in kept]
