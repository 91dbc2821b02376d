"""Continued pretraining: data blend, train step, checkpoints, validation."""

import megatron_ext.model  # noqa: F401  # lets megatron-core run on a CPU, before any module here imports it
