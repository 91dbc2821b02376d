"""Hugging Face config and weights to megatron-core and back, and the proof that they agree.

Importing this package lets megatron-core run on a CPU; it must come before the first import of megatron.
"""

from megatron_ext.model.cpu import adapt_to_cpu

adapt_to_cpu()
