"""Attention with an axial bias as C++ kernels for the CPU, ``csrc/axial_attention.cpp``.

About as fast as torch's fused attention without any bias. They are operators of torch, so that compiled models contain
them as they are.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from plain_detr.attention import cpp_library
from plain_detr.attention.cpp_library import LANES
from plain_detr.attention.self_check import attention_is_right, once

MAX_CHANNELS = 256
# Below that the start of a thread, beside torch's own that still watch for work, costs more than it gains.
PRODUCTS_A_THREAD = 1 << 25


def cpp_works(q: Tensor) -> bool:
    """Whether "auto" may take the kernels: queries on the CPU of a width that they know, and kernels that are right."""
    return q.device.type == "cpu" and q.dtype != torch.float64 and q.shape[-1] <= MAX_CHANNELS and _proven()


def cpp_attention(q: Tensor, k: Tensor, v: Tensor, bias_x: Tensor, bias_y: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias + mask) v in float32, whatever the types.

    Args:
        q: (N, h, Q, d), d up to 256; the kernels work on whole vectors, so d that is no multiple of 8 is padded.
        k, v: (N, h, L, d), L = Hf * Wf row by row.
        bias_x, bias_y: (N, h, Q, Wf) and (N, h, Q, Hf).
        mask: (N, L) added to every query's logits, or None.

    Returns:
        (N, h, Q, d) in the type of ``v``.

    Raises:
        RuntimeError: no compiled kernels.
        ValueError: a larger d.
    """
    channels = q.shape[-1]
    if channels > MAX_CHANNELS:
        raise ValueError(f"heads of {channels} channels; the C++ kernels know up to {MAX_CHANNELS}")
    if mask is None:
        mask = q.new_zeros(len(k), k.shape[2])
    with torch.autocast("cpu", enabled=False):
        heads = (q.float() / math.sqrt(channels), k.float(), v.float())
        if missing := -channels % LANES:  # channels of zeros add nothing to a product, and come out as zeros
            heads = (F.pad(one, (0, missing)) for one in heads)
        out = _attention(*heads, bias_x.float(), bias_y.float(), mask.float())[0]
        return out[..., :channels].to(v.dtype)


@torch.library.custom_op("plain_detr::axial_attention", mutates_args=())
def _attention(
    q: Tensor, k: Tensor, v: Tensor, bias_x: Tensor, bias_y: Tensor, mask: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs (N, h, Q, d), and of each query (N, h, Q) the largest logit and the sum of exponentials below it."""
    if cpp_library.library() is None:
        raise RuntimeError("attention implementation 'cpp' needs a C++ compiler and a CPU")
    hw = (bias_y.shape[-1], bias_x.shape[-1])
    out, tops, sums = (torch.empty(shape) for shape in (q.shape, q.shape[:-1], q.shape[:-1]))
    cpp_library.call(
        "axial_attention_forward",
        q.contiguous(), _columns(k, hw), _rows(v, hw), *_biases(bias_x, bias_y), _mask(mask, hw), *_sizes(q, hw),
        out, tops, sums,
    )  # fmt: skip
    return out, tops, sums


@_attention.register_fake
def _(q, k, v, bias_x, bias_y, mask):
    return q.new_empty(q.shape), q.new_empty(q.shape[:-1]), q.new_empty(q.shape[:-1])


@torch.library.custom_op("plain_detr::axial_attention_backward", mutates_args=())
def _attention_backward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_x: Tensor,
    bias_y: Tensor,
    mask: Tensor,
    out: Tensor,
    tops: Tensor,
    sums: Tensor,
    grad_out: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v and the biases."""
    hw = height, width = bias_y.shape[-1], bias_x.shape[-1]
    grad_out = grad_out.contiguous()
    mean = (grad_out * out).sum(-1)
    keys, columns, biases = _rows(k, hw), _columns(k, hw), _biases(bias_x, bias_y)
    grads = [torch.zeros(part.shape) for part in (q, keys, keys, *biases)]
    cpp_library.call(
        "axial_attention_backward",
        q.contiguous(), keys, columns, _columns(v, hw), *biases, _mask(mask, hw), tops, sums, grad_out, mean,
        *_sizes(q, hw), *grads,
    )  # fmt: skip
    grad_q, grad_k, grad_v, grad_x, grad_y = grads
    grad_k, grad_v = (part[..., :width, :].flatten(2, 3).clone() for part in (grad_k, grad_v))
    return grad_q, grad_k, grad_v, grad_x[..., :width].clone(), grad_y


@_attention_backward.register_fake
def _(q, k, v, bias_x, bias_y, mask, out, tops, sums, grad_out):
    return tuple(part.new_empty(part.shape) for part in (q, k, v, bias_x, bias_y))


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs, *output)
    ctx.set_materialize_grads(False)


def _differentiate(ctx, grad_out, *_):
    if grad_out is None:
        return (None,) * 6
    return *_attention_backward(*ctx.saved_tensors, grad_out), None


_attention.register_autograd(_differentiate, setup_context=_keep)


def _rows(keys: Tensor, hw: tuple[int, int]) -> Tensor:
    """(N, h, L, d) -> (N, h, Hf, whole vectors of columns, d)."""
    return F.pad(keys.unflatten(2, hw), (0, 0, 0, _missing(hw))).contiguous()


def _columns(keys: Tensor, hw: tuple[int, int]) -> Tensor:
    """(N, h, L, d) -> (N, h, d, Hf, whole vectors of columns)."""
    return F.pad(keys.transpose(2, 3).unflatten(3, hw), (0, _missing(hw))).contiguous()


def _biases(bias_x: Tensor, bias_y: Tensor) -> tuple[Tensor, Tensor]:
    return F.pad(bias_x, (0, -bias_x.shape[-1] % LANES)).contiguous(), bias_y.contiguous()


def _mask(mask: Tensor, hw: tuple[int, int]) -> Tensor:
    return F.pad(mask.unflatten(1, hw), (0, _missing(hw)), value=-math.inf).contiguous()


def _missing(hw: tuple[int, int]) -> int:
    return -hw[1] % LANES


def _sizes(q: Tensor, hw: tuple[int, int]) -> tuple[int, ...]:
    images, heads, queries, channels = q.shape
    height, width = hw[0], hw[1] + _missing(hw)
    products = images * heads * queries * height * width * channels
    threads = max(1, min(torch.get_num_threads(), products // PRODUCTS_A_THREAD))
    return images * heads, heads, queries, height, width, channels, threads


@once
def _proven() -> bool:
    if cpp_library.library() is None:
        return False
    return attention_is_right("the C++ kernel of attention", cpp_attention, 24)
