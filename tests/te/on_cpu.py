"""Transformer Engine on a CPU, for tests: its own Python, with what is compiled for CUDA alone replaced.

Real are Transformer Engine's modules, autograd functions, names, shapes, states and dispatch, and megatron-core's
wrappers of them. Replaced are the extension `transformer_engine_torch` (tests/te/kernels.py) and the Triton kernels,
which nothing here calls; `torch.cuda`, as Transformer Engine sees it, answers for an H100 whose memory is the CPU's.

Not covered, and left to `make gpu-check`: context parallelism, the execution of fp8, cuDNN and flash attention, NCCL,
real overlap.

`make te` makes an environment, .venv-te, in which every Python starts with `install()`: what runs in it is the program
that a user runs.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import os
import re
import sys
from collections.abc import Sequence
from types import CodeType, ModuleType, SimpleNamespace
from typing import Any

from megatron_ext.model import cpu

_PACKAGE = "transformer_engine"
_EXTENSION = "transformer_engine_torch"
_TRITON_KERNELS = [f"{_PACKAGE}.pytorch.triton.{name}" for name in ("permutation", "pad", "cross_entropy")]
_SETTINGS = {
    "CUDA_VISIBLE_DEVICES": "",
    "NVTE_PROJECT_BUILDING": "1",  # or the import looks for libtransformer_engine.so
    "NVTE_TORCH_COMPILE": "0",  # small functions are minutes of C++ on a CPU
    "NVTE_MASKED_SOFTMAX_FUSION": "0",  # a kernel that torch's softmax replaces
}


def install() -> None:
    """Put the replacements in place; cheap, imports nothing. Call it before Transformer Engine is imported."""
    os.environ.update(_SETTINGS)
    sys.meta_path.insert(0, _Finder())


class _Finder(importlib.abc.MetaPathFinder):
    """Finds Transformer Engine's modules as usual, adapts each, and stands in for what is compiled."""

    def find_spec(self, name: str, path: Sequence[str] | None,
                  target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        if name in (_EXTENSION, *_TRITON_KERNELS):
            return importlib.machinery.ModuleSpec(name, _KernelLoader())
        if name.split(".")[0] != _PACKAGE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads a module as if its tensors were on a GPU."""

    def get_code(self, fullname: str) -> CodeType:
        source = re.sub(r"\b\w+\.is_cuda\b", "True", self.get_source(fullname) or "")
        return self.source_to_code(source.replace('device="cuda"', 'device="cpu"').encode(), self.path)

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        if "torch" in vars(module):
            vars(module)["torch"] = _torch_with_cpu_for_cuda()
        if module.__name__ == f"{_PACKAGE}.common":
            module.load_framework_extension = lambda framework: None


class _KernelLoader(importlib.abc.Loader):
    """Makes the stand-in of a compiled module."""

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Kernels(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == _EXTENSION:
            from tests.te.enumerations import ENUMERATIONS
            from tests.te.kernels import KERNELS

            vars(module).update(ENUMERATIONS | KERNELS)
            # What Transformer Engine takes by `import *`.
            module.__all__ = [*ENUMERATIONS, *KERNELS, "layernorm_fwd", "layernorm_bwd", "rmsnorm_bwd_add", "quantize"]


class _Kernels(ModuleType):
    """Whatever is asked for is there; what is not emulated says so when it is called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        if name[0].isupper():
            return type(name, (), {})

        def not_emulated(*args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError(f"{self.__name__}.{name} has no stand-in on a CPU")

        return not_emulated


@functools.cache
def _torch_with_cpu_for_cuda() -> ModuleType:
    """torch as Transformer Engine sees it."""
    torch = cpu._torch_without_cuda()
    h100 = SimpleNamespace(major=9, minor=0, multi_processor_count=132, total_memory=80 << 30, name="H100 stand-in")
    cuda = cpu._Overlay(
        torch.cuda, is_available=lambda: True, device_count=lambda: 1, is_current_stream_capturing=lambda: False,
        get_device_properties=lambda *args: h100, get_device_capability=lambda *args: (h100.major, h100.minor))
    return cpu._Overlay(torch, cuda=cuda)
