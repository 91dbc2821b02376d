"""Keys and values of a batch in buffers with room for what is still to come.

transformers' own dynamic cache copies all of it for every new token; here a token is written into its place.
"""

# b: batch; h: heads; s: tokens so far; d: channels of a head

from __future__ import annotations

from typing import Any

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

ROOM_TOKENS = 128
"""By how much a full buffer grows."""


class GrowingLayer(DynamicLayer):
    """A layer's keys and values [b, h, s, d], which are views of larger buffers."""

    _buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any,
               **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Add new ones [b, h, new, d]; returns all so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        end = start + key_states.shape[2]
        if self._buffers is None or self._buffers[0].shape[2] < end:
            self._buffers = (self._grown(self.keys, key_states, start, end),
                             self._grown(self.values, value_states, start, end))
        keys, values = self._buffers
        keys[:, :, start:end], values[:, :, start:end] = key_states, value_states
        self.keys, self.values = keys[:, :, :end], values[:, :, :end]
        return self.keys, self.values

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep some rows of the batch."""
        super().batch_select_indices(indices)
        self._buffers = None

    @staticmethod
    def _grown(old: torch.Tensor, new: torch.Tensor, start: int, end: int) -> torch.Tensor:
        batch, heads, _, channels = new.shape
        buffer = new.new_empty(batch, heads, end + ROOM_TOKENS, channels)
        if start:
            buffer[:, :, :start] = old
        return buffer


def growing_cache(config: PreTrainedConfig) -> DynamicCache:
    """A cache for a model; layers with a window keep transformers' own kind."""
    cache = DynamicCache(config=config)
    cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache
