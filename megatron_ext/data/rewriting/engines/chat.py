"""The chat format of a model: prompts to token ids, and which tokens end an answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from megatron_ext.data.model_folder import load_tokenizer
from megatron_ext.data.rewriting.engines.interface import Request
from megatron_ext.errors import UserError


def load_chat_tokenizer(model: Path) -> Any:
    """The tokenizer of an instruct model. Raises UserError when it has no chat template."""
    tokenizer = load_tokenizer(model)
    if not tokenizer.chat_template:
        raise UserError(f"{model}: its tokenizer has no chat template; a rewriter must be an instruct model")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def encode_prompts(tokenizer: Any, requests: Sequence[Request]) -> list[list[int]]:
    """Ids of the prompts with the chat template around them."""
    texts = [tokenizer.apply_chat_template([{"role": "user", "content": request.prompt}], tokenize=False,
                                           add_generation_prompt=True) for request in requests]
    return tokenizer(texts, add_special_tokens=False)["input_ids"]


def refuse_too_long(prompts: Sequence[Sequence[int]], requests: Sequence[Request], limit: int | None) -> None:
    """Raise UserError when a prompt and its completion do not fit into the model's context of `limit` tokens."""
    longest = max(len(ids) + request.max_new_tokens for ids, request in zip(prompts, requests, strict=True))
    if limit is not None and longest > limit:
        raise UserError(f"a prompt and its completion need {longest:,} tokens, the rewriter holds {limit:,}; use a "
                        "smaller chunk_tokens")
