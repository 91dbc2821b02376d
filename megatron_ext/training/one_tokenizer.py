"""One tokenizer along the chain: what a run reads must be encoded as its model, and its other sources, are.

Ids of another tokenizer that happen to fit the embedding train a model on noise without any error.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from megatron_ext.artifacts import Artifact
from megatron_ext.config import RunConfig
from megatron_ext.data.encoder_choice import VOCABULARY_FILES
from megatron_ext.data.indexed import IndexedReader
from megatron_ext.errors import UserError
from megatron_ext.hashing import hash_file
from megatron_ext.model.hf_config import read_architecture


def tokenizer_problems(config: RunConfig, artifacts: Mapping[str, Artifact]) -> list[str]:
    """What does not fit together: tokenizers and end-of-document ids of the data, the model's tokenizer, its rows.

    Args:
        artifacts: settings key -> tokenized artifact that the run reads.
    """
    problems = [] if config.data.other_tokenizer else [*_unlike_sources(artifacts), *_unlike_model(config, artifacts)]
    return problems + _too_high_ids(config, artifacts)


def _unlike_sources(artifacts: Mapping[str, Artifact]) -> list[str]:
    """Those that were not encoded as the first."""
    problems = []
    for what, name in (("tokenizer_sha256", "tokenizer"), ("eod_token_id", "end-of-document id")):
        values = {key: artifact.counts[what] for key, artifact in artifacts.items() if what in artifact.counts}
        first = next(iter(values), None)
        problems += [f"{key} was tokenized with another {name} ({_short(value)}) than {first} "
                     f"({_short(values[first])}); tokenize all with the same one" for key, value in values.items()
                     if first is not None and value != values[first]]
    return problems


def _unlike_model(config: RunConfig, artifacts: Mapping[str, Artifact]) -> list[str]:
    """Those that were encoded with another vocabulary than the model folder holds."""
    folder = config.model.hf_folder
    problems = []
    for key, artifact in artifacts.items():
        file = folder / VOCABULARY_FILES.get(artifact.counts.get("encoder", ""), "")
        made_with = artifact.counts.get("tokenizer_sha256")
        if made_with and file.is_file() and hash_file(file) != made_with:
            problems.append(f"{key}: {artifact.path} was tokenized with another {file.name} ({_short(made_with)}) than "
                            f"{file} ({_short(hash_file(file))}): tokenize with the model's own tokenizer; if both "
                            "give the same ids, set data.other_tokenizer: true")
    return problems


def _too_high_ids(config: RunConfig, artifacts: Mapping[str, Artifact]) -> list[str]:
    """Those that hold an id past the rows of the model's embedding. A vocabulary may name more than is used."""
    try:
        num_rows = read_architecture(config.model.hf_folder).vocab_size
    except UserError:
        return []  # told where the model is checked
    problems = []
    for key, artifact in artifacts.items():
        if artifact.counts["vocab_size"] <= num_rows:
            continue
        highest = max(_highest_id(artifact.path / split) for split in ("train", "valid"))
        if highest >= num_rows:
            problems.append(f"{key}: {artifact.path} holds the token id {highest:,}, the model has {num_rows:,} rows: "
                            "tokenize with the model's own tokenizer")
    return problems


def _highest_id(prefix: Path) -> int:
    reader = IndexedReader(prefix)
    return reader.largest_token_id() if reader.num_tokens else -1


def _short(value: object) -> str:
    return value[:12] if isinstance(value, str) else str(value)
