"""Continued pretraining studies on megatron-core: from a scored corpus to a verdict with error bars."""

__version__ = "0.1.0"
