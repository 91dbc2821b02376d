"""Devices that run a model: their names, and whether this machine has them.

lm-evaluation-harness takes any name: of one that it does not know it says so in its log and takes another device.
"""

from __future__ import annotations

import re

from megatron_ext.errors import UserError

_NAME = re.compile(r"cpu|mps|(cuda|xpu|npu|hpu)(:\d+)?")


def check_name(device: str) -> None:
    """Raise ValueError for what is no device on any machine."""
    if not _NAME.fullmatch(device):
        raise ValueError("is no device of torch: write cpu, cuda, cuda:1, mps or xpu")


def check_presence(device: str) -> None:
    """Raise UserError where this machine lacks a device."""
    import torch

    kind, _, index = device.partition(":")
    number = {"cpu": 1, "mps": int(torch.backends.mps.is_available())}.get(kind)
    if number is None:
        module = getattr(torch, kind, None)
        number = module.device_count() if module is not None else 0
    if int(index or 0) >= number:
        others = f"; it has {number} of this kind" if number else ""
        raise UserError(f"device = {device}: this machine has no such device{others}; write device=cpu, or leave it "
                        "out for the GPU if there is one")
