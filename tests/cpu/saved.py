"""What a checkpoint holds, tensor by tensor, whatever layout wrote it."""

from __future__ import annotations

from pathlib import Path

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.default_planner import _EmptyStateDictLoadPlanner
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict


def weights_and_optimizer(run: Path) -> dict[str, torch.Tensor]:
    """What the last checkpoint of a run holds; the two optimizers' names for main weights become one.

    The plain optimizer keeps none beside float32 weights: there they are the weights.
    """
    checkpoint = run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()
    tensors = {name.replace(".fp32_param.", ".param."): tensor for name, tensor in saved_tensors(checkpoint).items()}
    for name in [name for name in tensors if not name.startswith("optimizer.")]:
        tensors.setdefault(f"optimizer.state.param.{name}", tensors[name])
    return tensors


def saved_tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Name -> tensor of all weights and optimizer states; not Transformer Engine's empty objects beside them."""
    values: dict[str, object] = {}
    _load_state_dict(values, FileSystemReader(checkpoint), planner=_EmptyStateDictLoadPlanner(), no_dist=True)
    return {name: tensor for name, tensor in _leaves(values) if "_extra_state" not in name}


def _leaves(values, prefix=""):
    items = values.items() if isinstance(values, dict) else enumerate(values)
    for key, value in items:
        name = f"{prefix}{key}"
        if isinstance(value, dict | list):
            yield from _leaves(value, f"{name}.")
        elif isinstance(value, torch.Tensor):
            yield name, value
