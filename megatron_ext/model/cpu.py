"""megatron-core on a CPU: what it takes for granted about CUDA, mended in one place.

megatron-core calls `torch.cuda` for devices, streams and random numbers even where nothing needs a GPU.
`adapt_to_cpu()` installs an import hook through which every `megatron.*` module, and no other, sees a `torch` whose
`cuda` has CPU stand-ins and whose tensor factories place `device="cuda"` on the CPU. Other libraries keep the plain
torch: patched globally, it silently broke the loading of transformers models. The hook also mends single modules
(`_CPU_FIXES`), each fix with the symptom it mends. Where CUDA is available none of this is done.

What is wrong on every platform without apex and Transformer Engine, the states of torch.optim.AdamW in the distributed
optimizer and the norm of gradients, is mended everywhere (`_FIXES`).

    adapt_to_cpu()             # before the first import of megatron; cheap, imports nothing
    import megatron.core

The stand-ins follow megatron-core 0.16.1 and torch 2.13.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.abc
import importlib.machinery
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType, SimpleNamespace
from typing import Any

_FACTORIES = ("arange", "empty", "empty_like", "full", "ones", "ones_like", "rand", "randn", "tensor", "zeros",
              "zeros_like")
_MEMORY_FIGURES = ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved")


def adapt_to_cpu() -> None:
    """Let megatron-core run without CUDA. Call it before megatron is imported; again, it does nothing."""
    if any(isinstance(finder, _MegatronFinder) for finder in sys.meta_path):
        return
    if "megatron.core" in sys.modules:
        raise ImportError("megatron.core was imported before megatron_ext.model, so it cannot be adapted; import "
                          "megatron_ext.model first")
    sys.meta_path.insert(0, _MegatronFinder())


class _MegatronFinder(importlib.abc.MetaPathFinder):
    """Finds `megatron.*` modules as usual, and adapts each after it was executed."""

    def find_spec(self, name: str, path: Sequence[str] | None,
                  target: ModuleType | None = None) -> importlib.machinery.ModuleSpec | None:
        if not name.startswith("megatron."):
            return None
        if not _cuda_is_available():
            _silence_advice()
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            spec.loader = _AdaptingLoader(spec.loader.name, spec.loader.path)
        return spec


class _AdaptingLoader(importlib.machinery.SourceFileLoader):
    """Loads a module from its source, then gives it the adapted torch and its own fixes."""

    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        fixes = [_FIXES.get(module.__name__)]
        if not _cuda_is_available():
            if "torch" in vars(module):
                vars(module)["torch"] = _torch_without_cuda()
            fixes.append(_CPU_FIXES.get(module.__name__))
        for fix in fixes:
            if fix is not None:
                fix(module)


@functools.cache
def _silence_advice() -> None:
    """Advice about GPUs and missing GPU packages, and torch's deprecation of what megatron-core still calls."""
    warnings.filterwarnings("ignore", module=r"megatron\.core")
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.\w+` is deprecated", category=FutureWarning)


def _cuda_is_available() -> bool:
    import torch  # not before megatron is really imported: it takes seconds

    return torch.cuda.is_available()


# --- torch as megatron sees it ---------------------------------------------------------------------------------------


class _Overlay(ModuleType):
    """A module with some attributes replaced; all others are the original's."""

    def __init__(self, original: ModuleType, **replacements: object) -> None:
        super().__init__(original.__name__)
        self.__dict__.update(replacements)
        self.__dict__["_original"] = original

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_original"], name)


class _NoStream:
    """Stands for a CUDA stream or event: on a CPU all work is done in order, so there is nothing to wait for."""

    cuda_stream = 0

    def __init__(self, *args: object, **kwargs: object) -> None:
        pass

    def __enter__(self) -> _NoStream:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def query(self) -> bool:
        """Whether the work is done."""
        return True

    def elapsed_time(self, end: object) -> float:
        """Milliseconds between two events; not measured here."""
        return 0.0

    def record(self, *args: object) -> None:
        """Nothing to record."""

    record_event = wait = wait_event = wait_stream = synchronize = record


@functools.cache
def _torch_without_cuda() -> ModuleType:
    import torch

    # Methods belong to the class, so these two are replaced for everybody; without CUDA they could only fail.
    torch.Tensor.cuda = lambda self, *args, **kwargs: self
    torch.nn.Module.cuda = lambda self, *args, **kwargs: self
    factories = {name: _on_cpu(getattr(torch, name)) for name in _FACTORIES}
    return _Overlay(torch, cuda=_cuda_stand_ins(torch), **factories)


def _cuda_stand_ins(torch: ModuleType) -> ModuleType:
    def nothing(*args: object, **kwargs: object) -> None:
        pass

    def get_rng_state(*args: object, **kwargs: object) -> Any:
        return torch.get_rng_state()

    def set_rng_state(state: Any, *args: object, **kwargs: object) -> None:
        torch.set_rng_state(state)

    def a_stream(*args: object, **kwargs: object) -> _NoStream:
        return _NoStream()

    return _Overlay(
        torch.cuda,
        current_device=lambda: torch.device("cpu"),
        set_device=nothing, synchronize=nothing, empty_cache=nothing,
        Stream=_NoStream, Event=_NoStream, stream=lambda stream: contextlib.nullcontext(),
        current_stream=a_stream, default_stream=a_stream,
        manual_seed=lambda seed: torch.default_generator.manual_seed(int(seed)) and None,
        get_rng_state=get_rng_state, set_rng_state=set_rng_state,
        random=SimpleNamespace(get_rng_state=get_rng_state, set_rng_state=set_rng_state),
        nvtx=SimpleNamespace(range_push=nothing, range_pop=nothing),
        **{name: lambda *args, **kwargs: 0 for name in _MEMORY_FIGURES},
    )


def _on_cpu(factory: Callable[..., Any]) -> Callable[..., Any]:
    """The tensor factory, with CUDA devices taken for the CPU, and no memory pinned for a device that is not there."""
    import torch

    @functools.wraps(factory)
    def create(*args: Any, **kwargs: Any) -> Any:
        device = kwargs.get("device")
        if isinstance(device, int) or (device is not None and torch.device(device).type == "cuda"):
            kwargs["device"] = torch.device("cpu")
        kwargs.pop("pin_memory", None)
        return factory(*args, **kwargs)

    return create


# --- fixes of single modules -----------------------------------------------------------------------------------------


def _set_cpu_random_state(module: ModuleType) -> None:
    """Symptom: the forward pass of recomputed layers, and dropout, fail in CUDA's lazy initialisation."""
    import torch

    module._set_cuda_rng_state = lambda state, device=-1, graph_safe=False: torch.set_rng_state(state)
    # The CPU generator takes the part of CUDA's, so megatron's warning that it moved is beside the point.
    logging.getLogger(module.__name__).addFilter(lambda record: "CPU RNG state changed" not in record.getMessage())


def _compile_nothing(module: ModuleType) -> None:
    """Symptom: small functions are compiled by torch.compile, minutes of C++ for nothing gained."""
    module.jit_fuser = module.noop_decorator


def _accept_cpu_types(module: ModuleType) -> None:
    """Symptom: "Wrapped parameters must be one of torch.cuda.FloatTensor…" from the mixed-precision optimizer."""
    optimizer = module.Float16OptimizerWithFloat16Params
    optimizer.__init__ = _with_cuda_type_names(optimizer.__init__)
    module.clip_grad_by_total_norm_fp32 = _with_cuda_type_names(module.clip_grad_by_total_norm_fp32)


def _accept_cpu_types_in_distributed_optimizer(module: ModuleType) -> None:
    """Symptom: "Wrapped parameters must be one of torch.cuda.FloatTensor…" from the distributed optimizer."""
    optimizer = module.DistributedOptimizer
    optimizer.__init__ = _with_cuda_type_names(optimizer.__init__)


_CPU_FIXES: dict[str, Callable[[ModuleType], None]] = {
    "megatron.core.jit": _compile_nothing,
    "megatron.core.tensor_parallel.random": _set_cpu_random_state,
    "megatron.core.optimizer.optimizer": _accept_cpu_types,
    "megatron.core.optimizer.distrib_optimizer": _accept_cpu_types_in_distributed_optimizer,
}


def _mend_adamw_states(module: ModuleType) -> None:
    """The distributed optimizer over torch.optim.AdamW, its fallback without apex and Transformer Engine."""
    if module.HAVE_APEX_OR_TE:
        return
    optimizer = module.DistributedOptimizer
    optimizer.sharded_state_dict = _after(_prime_adamw, optimizer.sharded_state_dict)
    optimizer._set_main_param_and_optimizer_states = _copy_param_and_moments
    optimizer.load_state_dict = _then(optimizer.load_state_dict, _give_each_param_its_step)


def _keep_norms_on_the_device(module: ModuleType) -> None:
    """Symptom without apex and Transformer Engine: the host waits for the norm of every parameter's gradient."""
    import torch

    def norm_of_all(chunk_size: int, noop_flag: Any, tensor_lists: list[list[Any]], *unused: Any) -> tuple[Any, None]:
        norms = torch.stack([torch.norm(tensor) for tensor in tensor_lists[0]])
        return torch.norm(norms).float()[None], None

    if module.l2_norm_impl.__name__ == "local_multi_tensor_l2_norm":
        module.l2_norm_impl = norm_of_all


_FIXES: dict[str, Callable[[ModuleType], None]] = {
    "megatron.core.optimizer.clip_grads": _keep_norms_on_the_device,
    "megatron.core.optimizer.distrib_optimizer": _mend_adamw_states,
}


def _prime_adamw(self: Any) -> None:
    """Symptom: `state_dict()` asserts that there is a step count, which AdamW has only after its first step."""
    import torch

    state = self.optimizer.state
    for group in self.optimizer.param_groups:
        for param in group["params"]:
            if not state[param]:
                state[param].update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(param.data),
                                    exp_avg_sq=torch.zeros_like(param.data))


def _copy_param_and_moments(self: Any, model_param: Any, tensors: dict[str, Any]) -> None:
    """Symptom: loading fails with KeyError 'step', and on float32 leaves that require a gradient."""
    import torch

    group, position = self.model_param_group_index_map[model_param]
    main_param = self.optimizer.param_groups[group]["params"][position]
    targets = {"param": main_param, **self.optimizer.state[main_param]}
    with torch.no_grad():
        for name, value in tensors.items():
            if name in targets and name != "step":
                targets[name].copy_(value)


def _give_each_param_its_step(self: Any) -> None:
    """Symptom, without an error: after a load all parameters share one step tensor, so each update counts N steps."""
    import torch

    for entry in self.optimizer.state.values():
        if torch.is_tensor(entry.get("step")):
            entry["step"] = entry["step"].clone()


def _after(first: Callable[[Any], None], method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        first(self)
        return method(self, *args, **kwargs)

    return call


def _then(method: Callable[..., Any], last: Callable[[Any], None]) -> Callable[..., Any]:
    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = method(self, *args, **kwargs)
        last(self)
        return result

    return call


def _with_cuda_type_names(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        with _cuda_type_names():
            return function(*args, **kwargs)

    return call


@contextlib.contextmanager
def _cuda_type_names() -> Iterator[None]:
    """While it lasts, `tensor.type()` says `torch.cuda.FloatTensor` for a CPU tensor."""
    import torch

    original = torch.Tensor.type

    def cuda_type(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = original(self, *args, **kwargs)
        told = isinstance(result, str) and not result.startswith("torch.cuda.")
        return result.replace("torch.", "torch.cuda.", 1) if told else result

    torch.Tensor.type = cuda_type
    try:
        yield
    finally:
        torch.Tensor.type = original
