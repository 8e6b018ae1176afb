"""Attention with an axial bias as GPU kernels: the bias is read by axis inside of them, and never made for every pair.

Run on a GPU, or anywhere with ``TRITON_INTERPRET=1`` (slow, for tests).
"""

import functools
import math
import os
from typing import Any

import torch
from torch import Tensor

from plain_detr.attention.self_check import attention_is_right

MAX_CHANNELS = 128
# The types that the kernels know, and by how much their results may miss the formula's.
RTOL = {torch.float32: 1e-3, torch.float16: 5e-2, torch.bfloat16: 5e-2}


@functools.cache
def kernels() -> Any:
    """Their module, or None without Triton (torch's CPU builds have none). Loaded when asked for: it takes a while."""
    try:
        from plain_detr.attention import triton_kernels
    except ImportError:
        return None
    return triton_kernels


def triton_works(q: Tensor) -> bool:
    """Whether "auto" may take the kernels: a GPU and a type that they know, on which they have proven themselves."""
    if not q.is_cuda or q.dtype not in RTOL or q.shape[-1] > MAX_CHANNELS or kernels() is None:
        return False
    return _proven(q.device, q.dtype, q.shape[-1])


@functools.cache
def _proven(device: torch.device, dtype: torch.dtype, channels: int) -> bool:
    return attention_is_right(
        "the Triton kernel of attention", triton_attention, channels, device=device, dtype=dtype, rtol=RTOL[dtype]
    )


class _TritonAttention(torch.autograd.Function):
    """(P, Q, d) queries of P pairs of an image and a head; everything contiguous."""

    @staticmethod
    def forward(ctx, q, k, v, bias_x, bias_y, mask):
        pairs, queries, channels = q.shape
        heads = pairs // len(mask) if mask is not None else 1
        out, lse = torch.empty_like(q), q.new_empty(pairs, queries, dtype=torch.float32)
        settings = _settings(q, bias_x, mask)
        grid = (_blocks(queries, settings["BLOCK_Q"]), pairs)
        sizes = (queries, bias_y.shape[-1], bias_x.shape[-1], channels, heads, 1 / math.sqrt(channels))
        kernels().forward_kernel[grid](
            q, k, v, bias_x, bias_y, mask if mask is not None else q, out, lse, *sizes, **settings
        )
        ctx.save_for_backward(q, k, v, bias_x, bias_y, mask, out, lse)
        ctx.sizes, ctx.settings = sizes, settings
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out):  # pyright: ignore[reportIncompatibleMethodOverride]  the base takes any number
        q, k, v, bias_x, bias_y, mask, out, lse = ctx.saved_tensors
        pairs, queries = q.shape[:2]
        grad_out = grad_out.contiguous()
        mean = (grad_out.float() * out.float()).sum(-1)
        inputs = (q, k, v, bias_x, bias_y, mask if mask is not None else q, grad_out, lse, mean)
        grad_q, grad_k, grad_v, grad_x = (torch.empty_like(part) for part in (q, k, v, bias_x))
        grad_y = torch.zeros_like(bias_y)
        block_q, block_x = ctx.settings["BLOCK_Q"], ctx.settings["BLOCK_X"]
        grid = (_blocks(queries, block_q), pairs)
        kernels().query_kernel[grid](*inputs, grad_q, grad_x, grad_y, *ctx.sizes, **ctx.settings)
        grid = (bias_y.shape[-1] * _blocks(bias_x.shape[-1], block_x), pairs)
        kernels().key_kernel[grid](*inputs, grad_k, grad_v, *ctx.sizes, **ctx.settings)
        return grad_q, grad_k, grad_v, grad_x, grad_y, None


def _settings(q: Tensor, bias_x: Tensor, mask: Tensor | None) -> dict:
    width = bias_x.shape[-1]
    # The tile that leaves least of its last column unused; a wide one where it is as good.
    block_x = min((64, 32, 16), key=lambda size: (_blocks(width, size) * size, -size))
    return {
        "MASKED": mask is not None,
        "BLOCK_Q": 64,
        "BLOCK_X": block_x,
        "BLOCK_D": max(16, 1 << (q.shape[-1] - 1).bit_length()),
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
    }


def _blocks(count: int, size: int) -> int:
    return -(-count // size)


def triton_attention(q: Tensor, k: Tensor, v: Tensor, bias_x: Tensor, bias_y: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias + mask) v.

    Args:
        q: (N, h, Q, d), d at most ``MAX_CHANNELS``.
        k, v: (N, h, L, d) in the type of ``q``, L = Hf * Wf row by row.
        bias_x, bias_y: (N, h, Q, Wf) and (N, h, Q, Hf).
        mask: (N, L) added to every query's logits, or None.

    Returns:
        (N, h, Q, d) in the type of ``v``.

    Raises:
        RuntimeError: there is no Triton, or no GPU and no ``TRITON_INTERPRET=1``.
    """
    if kernels() is None or not (q.is_cuda or interpreted()):
        raise RuntimeError("attention implementation 'triton' needs Triton and a GPU, or TRITON_INTERPRET=1")
    images, heads = q.shape[:2]
    parts = (q, k.to(q.dtype), v.to(q.dtype), bias_x.float(), bias_y.float())
    parts = (part.flatten(0, 1).contiguous() for part in parts)
    mask = None if mask is None else mask.float().contiguous()
    return _TritonAttention.apply(*parts, mask).unflatten(0, (images, heads)).to(v.dtype)


def interpreted() -> bool:
    """Whether kernels run in Triton's interpreter."""
    return os.environ.get("TRITON_INTERPRET") == "1"
