"""What can be known of a study's models before they are fetched: their shape and their size."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from megatron_ext.artifacts import Artifact, is_finished
from megatron_ext.data.model_folder import EMBEDDED_CONFIG, EMBEDDED_MODEL, num_parameters
from megatron_ext.errors import UserError
from megatron_ext.files import read_json
from megatron_ext.model.hf_config import Architecture, parse_hf_config, read_architecture
from megatron_ext.study.nodes import Inside, Node
from megatron_ext.training.memory import count_parameters

_MODEL_KEYS = ("model", "model.hf_folder", "checkpoint", "checkpoints")
_HUB_SECONDS = 3.0
"""Time that the hub has to answer a plan, which should be there in seconds, on a laptop without a network too."""


def model_node(node: Node) -> Node:
    """The node that fetches the model which a node holds, reads, or was made from."""
    while node.stage != "model":
        value: Any = node.inputs[next(key for key in _MODEL_KEYS if key in node.inputs)]
        one = value[0] if isinstance(value, list) else value
        node = one.node if isinstance(one, Inside) else one
    return node


def known_architecture(node: Node, work: Path) -> Architecture | None:
    """The architecture of the model that a node is about; None when it is known only after it was fetched.

    Raises UserError for a model that is there and not supported.
    """
    folder = _folder(node, work)
    if folder is not None:
        return read_architecture(folder)
    config = _config_of(_name(node))
    return None if config is None else parse_hf_config(config)


def known_parameters(node: Node, work: Path, billion_parameters: Mapping[str, float]) -> float | None:
    """Parameters of the model that a node is about: counted where it is there, else as the study file says, else as
    its config.json on the hub says; None when none of these is to be had."""
    source = model_node(node)
    if is_finished(source.output(work)):
        return Artifact.open(source.output(work)).counts["num_parameters"]
    folder = _folder(node, work)
    if folder is not None and (count := num_parameters(folder)):
        return count
    if _name(source) in billion_parameters:
        return billion_parameters[_name(source)] * 1e9
    try:
        architecture = known_architecture(node, work)
    except UserError:  # a rewriter may be of any family
        return None
    return None if architecture is None else count_parameters(architecture)


def _folder(node: Node, work: Path) -> Path | None:
    """The fetched model, else the folder that it will be fetched from."""
    source = model_node(node)
    if is_finished(source.output(work)):
        return source.output(work)
    place = source.inputs.get("model")
    return place if isinstance(place, Path) else None


def _name(node: Node) -> str:
    source = model_node(node)
    return str(source.inputs.get("model", source.settings.get("model")))


@cache
def _config_of(name: str) -> dict[str, Any] | None:
    """config.json of a model by its name, from the hub's cache or, within a few seconds, the hub."""
    if name.lower() == EMBEDDED_MODEL:
        return EMBEDDED_CONFIG
    from huggingface_hub import hf_hub_download, try_to_load_from_cache

    cached = try_to_load_from_cache(name, "config.json")
    if isinstance(cached, str):
        return read_json(Path(cached))
    if os.environ.get("HF_HUB_OFFLINE") or not _hub_answers():
        return None
    try:
        return read_json(Path(hf_hub_download(name, "config.json", etag_timeout=_HUB_SECONDS)))
    except (OSError, ValueError):  # gated, unknown or not reached: told where the model is fetched
        return None


@cache
def _hub_answers() -> bool:
    """Whether the hub can be reached, tried once: a plan must not wait for every model."""
    import socket
    from urllib.parse import urlparse

    from huggingface_hub import constants

    address = urlparse(constants.ENDPOINT)
    try:
        with socket.create_connection((address.hostname, address.port or 443), timeout=_HUB_SECONDS):
            return True
    except OSError:
        return False
