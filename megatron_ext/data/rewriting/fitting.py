"""Does a chunk fit into the model's context, with its prompt and its completion?"""

from __future__ import annotations

import json
from collections.abc import Sequence

from megatron_ext.data.rewriting.engines.interface import Request
from megatron_ext.data.rewriting.items import FitsModel, max_new_tokens
from megatron_ext.data.rewriting.prompts import Prompt
from megatron_ext.data.rewriting.settings import RewriteSettings

_TEMPLATE_TOKENS = 256
"""More than a chat template adds around a message."""


def fits_model(settings: RewriteSettings, prompts: Sequence[Prompt]) -> FitsModel:
    """A function that tells it for a source text.

    A byte is a token at most: most chunks are found to fit by their length alone, without the rewriter's tokenizer.
    Where that is not at hand (openai) the bytes decide.
    """
    context = context_tokens(settings)
    if context is None:
        return lambda source, num_source_tokens: True
    longest = max(prompts, key=lambda prompt: len(prompt.instruction.encode()))
    tokenizer = None

    def fits(source: str, num_source_tokens: int) -> bool:
        nonlocal tokenizer
        prompt, limit = longest.render(source, settings.order), max_new_tokens(settings, num_source_tokens)
        if len(prompt.encode()) + _TEMPLATE_TOKENS + limit <= context:
            return True
        if settings.engine == "openai" or settings.model is None:
            return False
        from megatron_ext.data.rewriting.engines.chat import encode_prompts, load_chat_tokenizer

        tokenizer = tokenizer or load_chat_tokenizer(settings.model)
        requests = [Request("", one.render(source, settings.order), 0, limit) for one in prompts]
        return max(map(len, encode_prompts(tokenizer, requests))) + limit <= context

    return fits


def context_tokens(settings: RewriteSettings) -> int | None:
    """Tokens that the rewriter holds; None: not known."""
    if settings.context_tokens is not None:
        return settings.context_tokens
    if settings.engine == "vllm" and settings.vllm.max_model_len is not None:
        return settings.vllm.max_model_len
    if settings.engine == "openai" or settings.model is None or not (settings.model / "config.json").is_file():
        return None
    return json.loads((settings.model / "config.json").read_text(encoding="utf-8")).get("max_position_embeddings")
