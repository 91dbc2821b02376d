"""Stage 1, selecting documents: `stage` is the way through it."""

from megatron_ext.data.selection.settings import SelectSettings
from megatron_ext.data.selection.stage import select_corpus

__all__ = ["SelectSettings", "select_corpus"]
