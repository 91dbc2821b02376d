"""How Megatron's tensors are made of Hugging Face's: one table a family, read in both directions.

A row's left side is a name in a megatron-core checkpoint (`*` is the layer), the same for both layer implementations;
its right side names the Hugging Face tensors and says how they are laid out and split over tensor-parallel ranks.

Shapes: ng = key/value heads ("query groups"), nq = query heads in a group, d = head size, h = hidden size.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from megatron_ext.model.hf_config import Architecture


class Shard(NamedTuple):
    """One tensor-parallel rank of several."""

    rank: int
    size: int

    def span(self, total: int) -> slice:
        """This rank's part of `total` equal rows or columns."""
        assert total % self.size == 0
        part = total // self.size
        return slice(self.rank * part, (self.rank + 1) * part)


class Row(ABC):
    """One Megatron tensor and the Hugging Face tensors it is made of, the fields of the subclass."""

    sharded_axis: int | None
    """The axis that is split over tensor-parallel ranks; None: each has all of it."""

    @property
    def hf_names(self) -> tuple[str, ...]:
        """The Hugging Face names, `*` for the layer."""
        return astuple(self)

    def hf_num_rows(self, num_rows: int, architecture: Architecture) -> tuple[int, ...]:
        """Length of the first axis of each Hugging Face tensor, given that of the whole Megatron tensor."""
        return (num_rows,)

    @abstractmethod
    def to_megatron(self, parts: Sequence[Tensor], shard: Shard, num_rows: int, architecture: Architecture) -> Tensor:
        """A rank's part of the Megatron tensor.

        Args:
            parts: the Hugging Face tensors; only what the part needs of them is touched, as they may lie in files.
            shard: which part.
            num_rows: length of the part's first axis.
        """

    @abstractmethod
    def to_hf(self, tensor: Tensor, architecture: Architecture) -> Sequence[Tensor]:
        """The Hugging Face tensors in a whole Megatron tensor."""


@dataclass(frozen=True)
class Replicated(Row):
    """The same tensor on every rank."""

    hf: str
    sharded_axis = None

    def to_megatron(self, parts: Sequence[Tensor], shard: Shard, num_rows: int, architecture: Architecture) -> Tensor:
        """All of it."""
        return parts[0][:]

    def to_hf(self, tensor: Tensor, architecture: Architecture) -> Sequence[Tensor]:
        """As it is."""
        return [tensor]


@dataclass(frozen=True)
class RowParallel(Row):
    """A projection back to the hidden size, split by columns: each rank has some of its inputs."""

    hf: str
    sharded_axis = 1

    def to_megatron(self, parts: Sequence[Tensor], shard: Shard, num_rows: int, architecture: Architecture) -> Tensor:
        """The rank's columns."""
        return parts[0][:, shard.span(parts[0].shape[1])]

    def to_hf(self, tensor: Tensor, architecture: Architecture) -> Sequence[Tensor]:
        """As it is."""
        return [tensor]


@dataclass(frozen=True)
class Vocab(Row):
    """A row for each token, filled up with rows of zeros so that every rank has as many."""

    hf: str
    sharded_axis = 0

    def hf_num_rows(self, num_rows: int, architecture: Architecture) -> tuple[int, ...]:
        """Without the rows that fill up."""
        return (architecture.vocab_size,)

    def to_megatron(self, parts: Sequence[Tensor], shard: Shard, num_rows: int, architecture: Architecture) -> Tensor:
        """The rank's rows; those past the vocabulary are zero."""
        first = min(shard.rank * num_rows, architecture.vocab_size)
        rows = parts[0][first:min(first + num_rows, architecture.vocab_size)]
        return torch.nn.functional.pad(rows, (0, 0, 0, num_rows - len(rows))) if len(rows) < num_rows else rows

    def to_hf(self, tensor: Tensor, architecture: Architecture) -> Sequence[Tensor]:
        """The rows of the vocabulary."""
        return [tensor[:architecture.vocab_size]]


@dataclass(frozen=True)
class QKV(Row):
    """Query, key and value projections, interleaved: for each query group its queries, its key, its value."""

    q: str
    k: str
    v: str
    sharded_axis = 0

    def hf_num_rows(self, num_rows: int, architecture: Architecture) -> tuple[int, ...]:
        """Of queries, keys and values."""
        keys = architecture.num_query_groups * architecture.kv_channels
        return (num_rows - 2 * keys, keys, keys)

    def to_megatron(self, parts: Sequence[Tensor], shard: Shard, num_rows: int, architecture: Architecture) -> Tensor:
        """The rank's query groups; where ranks share a group, the rank's rows of it."""
        if shard.size > architecture.num_query_groups:
            whole = self.to_megatron(parts, Shard(0, 1), num_rows * shard.size, architecture)
            return whole[shard.span(len(whole))]
        groups = architecture.num_query_groups // shard.size
        local = [part[shard.span(part.shape[0])] for part in parts]  # [ng_local * nq * d or ng_local * d, h]
        return torch.cat([part.unflatten(0, (groups, -1)) for part in local], dim=1).flatten(0, 1)

    def to_hf(self, tensor: Tensor, architecture: Architecture) -> Sequence[Tensor]:
        """Each projection's heads in order."""
        d = architecture.kv_channels
        grouped = tensor.unflatten(0, (architecture.num_query_groups, -1))  # [ng, (nq + 2) * d, h]
        return [part.flatten(0, 1) for part in grouped.split([grouped.shape[1] - 2 * d, d, d], dim=1)]


@dataclass(frozen=True)
class GateUp(Row):
    """The two input projections of a gated MLP, one over the other, each split for itself."""

    gate: str
    up: str
    sharded_axis = 0

    def hf_num_rows(self, num_rows: int, architecture: Architecture) -> tuple[int, ...]:
        """Half each."""
        return (num_rows // 2, num_rows // 2)

    def to_megatron(self, parts: Sequence[Tensor], shard: Shard, num_rows: int, architecture: Architecture) -> Tensor:
        """The rank's rows of the gate over its rows of the other."""
        return torch.cat([part[shard.span(part.shape[0])] for part in parts])

    def to_hf(self, tensor: Tensor, architecture: Architecture) -> Sequence[Tensor]:
        """The two halves."""
        return tensor.chunk(2)


Table = dict[str, Row]

LLAMA: Table = {
    "embedding.word_embeddings.weight": Vocab("model.embed_tokens.weight"),
    "decoder.layers.*.self_attention.linear_qkv.layer_norm_weight": Replicated("model.layers.*.input_layernorm.weight"),
    "decoder.layers.*.self_attention.linear_qkv.weight": QKV(
        q="model.layers.*.self_attn.q_proj.weight",
        k="model.layers.*.self_attn.k_proj.weight",
        v="model.layers.*.self_attn.v_proj.weight",
    ),
    "decoder.layers.*.self_attention.linear_proj.weight": RowParallel("model.layers.*.self_attn.o_proj.weight"),
    "decoder.layers.*.mlp.linear_fc1.layer_norm_weight": Replicated("model.layers.*.post_attention_layernorm.weight"),
    "decoder.layers.*.mlp.linear_fc1.weight": GateUp(
        gate="model.layers.*.mlp.gate_proj.weight",
        up="model.layers.*.mlp.up_proj.weight",
    ),
    "decoder.layers.*.mlp.linear_fc2.weight": RowParallel("model.layers.*.mlp.down_proj.weight"),
    "decoder.final_layernorm.weight": Replicated("model.norm.weight"),
    "output_layer.weight": Vocab("lm_head.weight"),
}

MISTRAL: Table = LLAMA

QWEN2: Table = LLAMA | {
    "decoder.layers.*.self_attention.linear_qkv.bias": QKV(
        q="model.layers.*.self_attn.q_proj.bias",
        k="model.layers.*.self_attn.k_proj.bias",
        v="model.layers.*.self_attn.v_proj.bias",
    ),
}

QWEN3: Table = LLAMA | {
    "decoder.layers.*.self_attention.q_layernorm.weight": Replicated("model.layers.*.self_attn.q_norm.weight"),
    "decoder.layers.*.self_attention.k_layernorm.weight": Replicated("model.layers.*.self_attn.k_norm.weight"),
}

FAMILIES: dict[str, Table] = {"llama": LLAMA, "mistral": MISTRAL, "qwen2": QWEN2, "qwen3": QWEN3}

IGNORED_HF_TENSORS = ("model.layers.*.self_attn.rotary_emb.inv_freq",)
"""Constants that old checkpoints carry and no model reads."""


def weight_table(architecture: Architecture) -> Table:
    """The table of a model. With tied embeddings a Hugging Face folder has no tensor for the output layer."""
    table = dict(FAMILIES[architecture.family])
    if architecture.tied_embeddings:
        del table["output_layer.weight"]
    return table


def in_model_order(table: Table, num_layers: int) -> Iterator[tuple[str, int | None]]:
    """(name, layer): the embedding, then layer by layer, then the rest."""
    first = next(iter(table))
    yield first, None
    for layer in range(num_layers):
        yield from ((name, layer) for name in table if "*" in name)
    yield from ((name, None) for name in table if "*" not in name and name != first)


def megatron_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """Shape of each Megatron tensor of a model, whole, without what fills the vocabulary up."""
    hidden, ffn, head = architecture.hidden_size, architecture.ffn_hidden_size, architecture.kv_channels
    queries = architecture.num_attention_heads * head
    qkv = queries + 2 * architecture.num_query_groups * head
    attention, mlp = "decoder.layers.*.self_attention", "decoder.layers.*.mlp"
    shapes = {
        "embedding.word_embeddings.weight": (architecture.vocab_size, hidden),
        f"{attention}.linear_qkv.layer_norm_weight": (hidden,),
        f"{attention}.linear_qkv.weight": (qkv, hidden),
        f"{attention}.linear_qkv.bias": (qkv,),
        f"{attention}.q_layernorm.weight": (head,),
        f"{attention}.k_layernorm.weight": (head,),
        f"{attention}.linear_proj.weight": (hidden, queries),
        f"{mlp}.linear_fc1.layer_norm_weight": (hidden,),
        f"{mlp}.linear_fc1.weight": (2 * ffn, hidden),
        f"{mlp}.linear_fc2.weight": (hidden, ffn),
        "decoder.final_layernorm.weight": (hidden,),
        "output_layer.weight": (architecture.vocab_size, hidden),
    }
    return {name: shapes[name] for name in weight_table(architecture)}
