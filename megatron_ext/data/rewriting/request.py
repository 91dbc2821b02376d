"""What an artifact of rewrites is asked for with: all that decides its bytes, and nothing else, in one place."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from megatron_ext.artifacts import Artifact, is_finished, reference
from megatron_ext.data.rewriting.checking.checks import load_thresholds
from megatron_ext.data.rewriting.engines.open import model_folder
from megatron_ext.data.rewriting.engines.settings import AskingSettings
from megatron_ext.data.rewriting.packs import told_by_content
from megatron_ext.data.rewriting.prompts import load_prompts
from megatron_ext.data.rewriting.settings import RewriteSettings

Asking = TypeVar("Asking", bound=AskingSettings)


def what_files_hold(settings: RewriteSettings) -> dict[str, Any]:
    """The hashes of prompts, thresholds and a pack of one's own, which decide the rewrites besides the settings."""
    prompts = load_prompts(settings.styles, settings.prompts_folder, settings.language)
    thresholds = load_thresholds(settings.styles, settings.thresholds_file, settings.language)
    return {
        "prompts": {prompt.style: {"version": prompt.version, "sha256": prompt.sha256} for prompt in prompts},
        "thresholds": {style: values.model_dump() for style, values in thresholds.items()},
        **told_by_content(settings.language),
    }


def with_served_model(settings: Asking, output: Path) -> Asking:
    """The settings with the name of the model that an endpoint serves, where they leave it open.

    What is finished keeps the name that it was made with: no server need run for it.
    """
    if settings.engine != "openai" or settings.openai.model:
        return settings
    if is_finished(output):
        name = Artifact.open(output).settings.get("openai", {}).get("model")
    else:
        from megatron_ext.data.rewriting.engines.openai_engine import served_model

        name = served_model(settings.openai)
    return settings.model_copy(update={"openai": settings.openai.model_copy(update={"model": name})})


def model_identity(settings: AskingSettings) -> str:
    """Content hash or name of the model that is asked. Raises UserError where the settings name none."""
    if settings.engine == "openai":
        return f"openai:{settings.openai.model}"
    return reference(model_folder(settings.engine, settings.model))["content_hash"]
