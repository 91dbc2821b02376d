"""Hugging Face config and weights to megatron-core and back, and the proof that they agree."""
