"""Which tokens of a prompt a model is given: the rule of the official harness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from evaluation.poeta.table import OFFICIAL_MAX_GEN_TOKS
from megatron_ext.errors import UserError


class OfficialPrompts:
    """A model class mixes this in and sets `tokenizer` and `_slice_start`.

    No special tokens. The rule of truncation does not depend on how many tokens are really generated: with a context of
    C tokens, the prompt is sliced from index 2048 - C. So C > 2048 keeps the last C - 2048 tokens, C = 2048 everything,
    and C < 2048 drops the *first* 2048 - C tokens of any prompt (an accident of the official harness).
    """

    tokenizer: Any
    _slice_start: int
    """2048 - C."""
    _known_tokens: Mapping[str, list[int]] = MappingProxyType({})
    """Prompts that were tokenized before; their order by length and each batch ask again."""

    def encode_prompt(self, prompt: str) -> list[int]:
        """Token ids of what the model is given. Raises UserError when the truncation rule leaves nothing."""
        tokens = self._tokens_of(prompt)
        if not tokens[self._slice_start:]:
            raise UserError(f"the model's context of {OFFICIAL_MAX_GEN_TOKS - self._slice_start} tokens is too short: "
                            f"the official truncation rule leaves nothing of a prompt of {len(tokens)} tokens")
        return tokens[self._slice_start:]

    def count_truncated(self, prompts: Sequence[str]) -> int:
        """How many prompts lose tokens. Their tokens are kept for `encode_prompt`."""
        encoded = self.tokenizer(list(prompts), add_special_tokens=False)["input_ids"]
        self._known_tokens = self._known_tokens | dict(zip(prompts, encoded, strict=True))
        return sum(len(tokens[self._slice_start:]) < len(tokens) for tokens in encoded)

    def _tokens_of(self, prompt: str) -> list[int]:
        known = self._known_tokens.get(prompt)
        return self.tokenizer.encode(prompt, add_special_tokens=False) if known is None else known
