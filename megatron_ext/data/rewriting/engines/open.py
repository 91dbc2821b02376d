"""Opening an engine by its name."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_ext.data.rewriting.engines.interface import Engine, EngineName, Sampling
from megatron_ext.data.rewriting.engines.settings import OpenaiSettings, VllmSettings
from megatron_ext.errors import UserError


def open_engine(name: EngineName, model: Path | None, sampling: Sampling, vllm: VllmSettings, openai: OpenaiSettings,
                template_arguments: Mapping[str, Any] | None = None,
                schema: Mapping[str, Any] | None = None) -> Engine:
    """Load the model folder into the engine of this name, or connect to the endpoint.

    Args:
        template_arguments: given to the chat template.
        schema: JSON schema that the engines which can (vllm, openai) hold answers to.

    Raises UserError when there is no model folder, it has no chat template, or the endpoint does not answer.
    """
    if name == "openai":
        from megatron_ext.data.rewriting.engines.openai_engine import OpenaiEngine

        return OpenaiEngine(openai, sampling, template_arguments, schema)
    model = model_folder(name, model)
    if name == "vllm":
        from megatron_ext.data.rewriting.engines.vllm_engine import VllmEngine

        return VllmEngine(model, sampling, vllm, template_arguments, schema)
    from megatron_ext.data.rewriting.engines.transformers_engine import TransformersEngine

    return TransformersEngine(model, sampling, template_arguments)


def model_folder(name: EngineName, model: Path | None) -> Path:
    """The folder that the engine of this name loads. Raises UserError where none is given."""
    if model is None:
        raise UserError(f"engine = {name}: needs `model`, the folder of an instruct model (tools.fetch_model)")
    return model
