"""Opening an engine by its name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_ext.data.rewriting.engines.interface import Engine, EngineName, Sampling
from megatron_ext.data.rewriting.engines.settings import OpenaiSettings, VllmSettings
from megatron_ext.errors import UserError


def open_engine(name: EngineName, model: Path | None, sampling: Sampling, vllm: VllmSettings, openai: OpenaiSettings,
                template_arguments: Mapping[str, Any] | None = None) -> Engine:
    """Load the model folder into the engine of this name, or connect to the endpoint.

    `template_arguments` are given to the chat template. Raises UserError when there is no model folder, it has no chat
    template, or the endpoint does not answer.
    """
    if name == "openai":
        from megatron_ext.data.rewriting.engines.openai_engine import OpenaiEngine

        return OpenaiEngine(openai, sampling, template_arguments)
    if model is None:
        raise UserError(f"engine = {name}: needs `model`, the folder of an instruct model (tools.fetch_model)")
    if name == "vllm":
        from megatron_ext.data.rewriting.engines.vllm_engine import VllmEngine

        return VllmEngine(model, sampling, vllm, template_arguments)
    from megatron_ext.data.rewriting.engines.transformers_engine import TransformersEngine

    return TransformersEngine(model, sampling, template_arguments)
