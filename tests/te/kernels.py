"""What Transformer Engine's kernels compute, in torch's arithmetic: the parts that dense Llama-like models call.

Names, arguments and results are those of the compiled extension `transformer_engine_torch` 2.11. What has no row here
says so when it is called.

Shapes: t = tokens, b = documents, s = sequence, n = heads, d = head size.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tests.te.enumerations import DType, NVTE_Fused_Attn_Backend, NVTE_QKV_Format

KERNELS: dict[str, Callable[..., Any]] = {}
CALLS: Counter[str] = Counter()
"""How often each was called: a test can tell that it was Transformer Engine that computed."""
TF32 = "TE_ON_CPU_TF32"
"""Environment variable: products of float32 matrices are rounded as a GPU's tensor cores round them."""

_TORCH_TYPES = {DType.kFloat32: torch.float32, DType.kFloat16: torch.float16, DType.kBFloat16: torch.bfloat16}


def _kernel(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        CALLS[function.__name__] += 1
        return function(*args, **kwargs)

    KERNELS[function.__name__] = call
    return call


@_kernel
def generic_gemm(a: Tensor, transpose_a: bool, b: Tensor, transpose_b: bool, out: Tensor | None, quantizer: None,
                 out_dtype: DType | None, bias: Tensor | None, bias_dtype: DType, gelu: bool, gelu_in: None, grad: bool,
                 workspace: Tensor, workspace_size: int, accumulate: bool, split_accumulator: bool,
                 **options: Any) -> tuple[Tensor, Tensor | None, None, None]:
    """`op(b) @ op(a)` (the extension counts columns first), with the bias added, or its gradient in the backward."""
    assert quantizer is None and not gelu and options.get("comm_overlap") is None
    rows, columns = b.reshape(-1, b.shape[-1]), a.reshape(-1, a.shape[-1])
    left, right = (rows.T if transpose_b else rows), (columns.T if transpose_a else columns)
    if a.dtype == torch.float32 and os.environ.get(TF32):
        left, right = _as_tf32(left), _as_tf32(right)
    product = left @ right
    if not transpose_b:
        product = product.reshape(*b.shape[:-1], product.shape[-1])
    bias_gradient = rows.sum(0) if grad and bias is not None else None
    if bias is not None and not grad and bias.numel():
        product = product + bias
    if out is None:
        return product.to(_TORCH_TYPES.get(out_dtype, product.dtype)), bias_gradient, None, None
    product = product.reshape(out.shape)
    out.add_(product) if accumulate else out.copy_(product)
    return out, bias_gradient, None, None


def _as_tf32(values: Tensor) -> Tensor:
    """Rounded to the ten bits after the binary point that a tensor core reads."""
    bits = values.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)


@_kernel
def rmsnorm_fwd(hidden: Tensor, weight: Tensor, eps: float, out: Tensor | None, quantizer: None, out_dtype: DType,
                sm_margin: int, zero_centered: bool) -> tuple[Tensor, None, Tensor]:
    """The normalised input, no mean, and the reciprocal of its root mean square `[…]`."""
    assert quantizer is None and not zero_centered
    scale = torch.rsqrt(hidden.float().pow(2).mean(-1) + eps)
    normalised = (hidden.float() * scale[..., None] * weight.float()).to(_TORCH_TYPES[out_dtype])
    return (normalised if out is None else out.copy_(normalised)), None, scale


@_kernel
def rmsnorm_bwd(gradient: Tensor, hidden: Tensor, scale: Tensor, weight: Tensor, sm_margin: int,
                zero_centered: bool) -> tuple[Tensor, Tensor]:
    """Gradients of the input and of the weight."""
    normalised = hidden.float() * scale[..., None]
    gradient = gradient.reshape(hidden.shape).float()
    weighted = gradient * weight.float()
    projected = (weighted * normalised).mean(-1, keepdim=True)
    of_hidden = scale[..., None] * (weighted - normalised * projected)
    of_weight = (gradient * normalised).flatten(0, -2).sum(0)
    return of_hidden.to(hidden.dtype), of_weight.to(weight.dtype)


@_kernel
def fused_rope_forward(heads: Tensor, angles: Tensor, start: None, layout: NVTE_QKV_Format, interleaved: bool,
                       cu_seqlens: Tensor | None, cp_size: int, cp_rank: int) -> Tensor:
    """Heads `[s, b, n, d]`, or `[t, n, d]` of packed documents, turned by the angles of their positions."""
    assert start is None and not interleaved and cp_size == 1
    return _turn(heads, _angles_of(heads, angles, layout, cu_seqlens), 1)


@_kernel
def fused_rope_backward(gradient: Tensor, angles: Tensor, start: None, layout: NVTE_QKV_Format, interleaved: bool,
                        cu_seqlens: Tensor | None, cp_size: int, cp_rank: int) -> Tensor:
    """The gradient, turned back."""
    return _turn(gradient, _angles_of(gradient, angles, layout, cu_seqlens), -1)


def _angles_of(heads: Tensor, angles: Tensor, layout: NVTE_QKV_Format, cu_seqlens: Tensor | None) -> Tensor:
    # The kernel reads one row a position, whatever the second axis holds.
    assert angles.dim() == 4 and angles.shape[1] == angles.shape[2] == 1, f"angles are {tuple(angles.shape)}"
    if layout != NVTE_QKV_Format.NVTE_THD:
        assert cu_seqlens is None and layout == NVTE_QKV_Format.NVTE_SBHD
        return angles[:heads.shape[0]]
    assert cu_seqlens is not None and len(heads) == cu_seqlens[-1]
    lengths = cu_seqlens.diff()
    positions = torch.arange(len(heads)) - torch.repeat_interleave(cu_seqlens[:-1], lengths)
    return angles[positions, 0]


def _turn(heads: Tensor, angles: Tensor, direction: int) -> Tensor:
    first, second = heads.float().chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (heads.float() * angles.cos() + direction * turned * angles.sin()).to(heads.dtype)


@_kernel
def convert_thd_to_bshd(packed: Tensor, cu_seqlens: Tensor, batch_size: int, max_seqlen: int) -> Tensor:
    """Documents laid end to end `[t, n, d]`, each in a row of its own `[b, s, n, d]`."""
    rows = packed.new_zeros(batch_size, max_seqlen, *packed.shape[1:])
    rows[_is_token(cu_seqlens, max_seqlen)] = packed
    return rows


@_kernel
def convert_bshd_to_thd(rows: Tensor, cu_seqlens: Tensor, num_tokens: int | Tensor) -> Tensor:
    """And back."""
    packed = rows[_is_token(cu_seqlens, rows.shape[1])]
    assert len(packed) == int(num_tokens)
    return packed


def _is_token(cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    return torch.arange(max_seqlen) < cu_seqlens.diff()[:, None]


@_kernel
def multi_tensor_adam(chunk_size: int, overflow: Tensor, tensors: Sequence[Sequence[Tensor]], lr: float, beta1: float,
                      beta2: float, eps: float, step: int, decoupled: bool, correct_bias: bool,
                      weight_decay: float) -> None:
    """One update of AdamW over lists of gradients, parameters, first and second moments."""
    assert decoupled and correct_bias and len(tensors) == 4
    for gradient, parameter, mean, square in zip(*tensors, strict=True):
        mean.lerp_(gradient.float(), 1 - beta1)
        square.mul_(beta2).addcmul_(gradient.float(), gradient.float(), value=1 - beta2)
        root = (square / (1 - beta2 ** step)).sqrt() + eps
        parameter.sub_(lr * (mean / (1 - beta1 ** step) / root + weight_decay * parameter))


@_kernel
def multi_tensor_scale(chunk_size: int, overflow: Tensor, tensors: Sequence[Sequence[Tensor]], scale: float) -> None:
    """Every source, scaled, into its target."""
    for source, target in zip(*tensors, strict=True):
        target.copy_(source * scale)


@_kernel
def multi_tensor_l2norm(chunk_size: int, overflow: Tensor, tensors: Sequence[Sequence[Tensor]],
                        per_tensor: bool = False) -> tuple[Tensor, Tensor]:
    """The norm over all tensors `[1]`, and that of each where it is asked for."""
    norms = torch.stack([tensor.float().norm() for tensor in tensors[0]]) if tensors[0] else torch.zeros(0)
    return norms.norm().reshape(1), norms if per_tensor else norms[:0]


KERNELS |= {
    # Without flash and cuDNN attention Transformer Engine falls back on its own of torch operators.
    "get_fused_attn_backend": lambda *args, **kwargs: NVTE_Fused_Attn_Backend.NVTE_No_Backend,
    "get_num_cublas_streams": lambda: 1,
    "get_cublasLt_version": lambda: 130_000,
    "get_cudnn_version": lambda: 91_600,
    "get_stream_priority_range": lambda *args: (0, -5),
    "device_supports_multicast": lambda *args: False,
    "ubuf_built_with_mpi": lambda: False,
}
