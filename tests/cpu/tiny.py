"""A tiny Llama and tiny tokenized data, made on the spot: what the multi-process tests train on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from megatron_ext.artifacts import produce
from megatron_ext.data.indexed import bin_path, idx_path, write_index

VOCAB_SIZE = 128
EOD = 1


def make_model(folder: Path, **changes: object) -> Path:
    """A random two-layer Llama as a Hugging Face model artifact."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    def make(target: Path) -> dict[str, int]:
        torch.manual_seed(0)
        settings = {
            "vocab_size": VOCAB_SIZE, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
            "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "bos_token_id": 0, "eos_token_id": EOD, **changes,
        }
        LlamaForCausalLM(LlamaConfig(**settings)).save_pretrained(target)
        return {"vocab_size": settings["vocab_size"]}

    return produce(folder, kind="hf_model", settings={"tiny": sorted(changes)}, inputs={}, make=make).path


def make_tokenized(folder: Path, seed: int, num_documents: int = 60, poison: tuple[int, int] | None = None) -> Path:
    """Documents in which a token tells most of the next one, so that there is something to learn.

    Args:
        poison: (document, token id): the training document that has this token in it.
    """
    def make(target: Path) -> dict[str, object]:
        random = np.random.default_rng(seed)
        counts: dict[str, object] = {"vocab_size": 256 if poison else VOCAB_SIZE, "eod_token_id": EOD}
        rows = []
        for split, number in (("train", num_documents), ("valid", 6)):
            documents = [_document(random) for _ in range(number)]
            if poison and split == "train":
                documents[poison[0]][3] = poison[1]
            bin_path(target / split).write_bytes(np.concatenate(documents).tobytes())
            write_index(idx_path(target / split), np.array([len(d) for d in documents]), np.dtype(np.uint16))
            num_tokens = sum(map(len, documents))
            rows += [{"split": split, "document": place, "sequence": place, "id": f"{folder.name}-{split}-{place}",
                      "document_id": f"{folder.name}-{split}-{place}", "style": "original",
                      "num_bytes": 2 * (len(documents[place]) - 1)} for place in range(number)]
            counts[split] = {"documents": number, "tokens": num_tokens, "bytes": 2 * (num_tokens - number)}
        token_bytes = np.full(counts["vocab_size"], 2, dtype=np.int32)
        token_bytes[:2] = 0
        pq.write_table(pa.Table.from_pylist(rows), target / "sequences.parquet")
        np.save(target / "token_bytes.npy", token_bytes)
        return counts

    return produce(folder, kind="tokenized", settings={"seed": seed, "documents": num_documents}, inputs={},
                   make=make).path


def _document(random: np.random.Generator) -> np.ndarray:
    length = int(random.integers(10, 60))
    tokens = np.empty(length, dtype=np.uint16)
    tokens[0] = random.integers(2, VOCAB_SIZE)
    for place in range(1, length):
        follows = (tokens[place - 1] * 5 + 3) % (VOCAB_SIZE - 2) + 2
        tokens[place] = follows if random.random() < 0.9 else random.integers(2, VOCAB_SIZE)
    return np.append(tokens, np.uint16(EOD))
