"""Continued pretraining: data blend, train step, checkpoints, validation."""
