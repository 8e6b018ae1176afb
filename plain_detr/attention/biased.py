"""Attention with an axial bias, without ever holding a number for every (query, pixel) pair when it trains.

``biased_attention`` is the one entry. Five ways compute the same function:

- *naive*: the formula as it reads, see ``plain_detr.attention.naive``; the oracle of the tests, and what is exported.
- *triton*: GPU kernels that read the bias by axis, see ``plain_detr.attention.triton``.
- *cpp*: compiled kernels for the CPU, see ``plain_detr.attention.cpp``.
- *fused*: the bias rides in the dot product. With one-hot codes of a key's row and column appended to it, and the
  query's biases appended to the query, q'.k' = q.k / sqrt(d) + bias_y[row] + bias_x[column]; any fused kernel does the
  rest. Exact, but the head grows by Hf + Wf channels, which fused kernels limit.
- *chunked*: a block of logits at a time, forward and backward, see ``plain_detr.attention.chunked``. For wider maps
  than the fused kernel takes, for float64, and for a CPU without a compiler.

Shape shorthand: N images, h heads, Q queries, L = Hf * Wf keys row by row, d channels of a head.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from d2x.backbones.tracing import exporting
from plain_detr.attention.chunked import chunked_attention
from plain_detr.attention.cpp import cpp_attention, cpp_works
from plain_detr.attention.naive import attention_weights, naive_biased_attention, padding_mask
from plain_detr.attention.triton import triton_attention, triton_works

__all__ = ["IMPLEMENTATIONS", "attention_weights", "biased_attention", "check_implementation", "naive_biased_attention"]

# Largest head of torch's fused GPU kernels.
FUSED_MAX_CHANNELS = 256

IMPLEMENTATIONS = ("auto", "triton", "cpp", "fused", "chunked", "naive")


def biased_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_x: Tensor | None = None,
    bias_y: Tensor | None = None,
    padding: Tensor | None = None,
    *,
    padding_value: float = -math.inf,
    bias: Tensor | None = None,
    implementation: str = "auto",
) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v, where bias[query, (row, column)] = bias_y[query, row] + bias_x[query, column].

    Args:
        q: (N, h, Q, d).
        k, v: (N, h, L, d).
        bias_x: (N, h, Q, Wf), or None together with ``bias_y``.
        bias_y: (N, h, Q, Hf).
        padding: (N, L) bool, True for keys that are padding; None means none is.
        padding_value: added to the logits of padded keys. The released code adds -100, which a large bias outweighs.
        bias: (N, h, Q, L), a bias that does not split into axes; excludes the two others.
        implementation: "auto", or one of the five by name. "auto" takes the first that is possible: the naive form
            while exporting, the kernels, on a GPU the fused form, else the chunked one.

    Returns:
        (N, h, Q, d) in the type of ``v``.

    Raises:
        ValueError: an unknown implementation, or a map of another size than the keys.
    """
    check_implementation(implementation)
    mask = padding_mask(padding, padding_value, q.dtype)
    if bias is not None:
        bias = bias.to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias if mask is None else bias + mask)
    if bias_x is None or bias_y is None:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    if bias_x.shape[-1] * bias_y.shape[-1] != k.shape[2]:
        raise ValueError(f"a bias for {bias_y.shape[-1]} x {bias_x.shape[-1]} cells does not fit {k.shape[2]} keys")
    if implementation == "auto":
        implementation = _choose(q, bias_x, bias_y)
    if implementation == "naive":
        return naive_biased_attention(q, k, v, bias_x, bias_y, padding, padding_value=padding_value)
    if implementation == "fused":
        return _fused(q, k, v, bias_x, bias_y, padding, mask)
    key_mask = padding_mask(padding, padding_value, torch.float32)
    key_mask = None if key_mask is None else key_mask[:, 0, 0]
    if implementation == "triton":
        return triton_attention(q, k, v, bias_x, bias_y, key_mask)
    if implementation == "cpp":
        return cpp_attention(q, k, v, bias_x, bias_y, key_mask)
    return chunked_attention(q, k, v, bias_x, bias_y, key_mask)


def check_implementation(name: str) -> None:
    """Raise ValueError unless ``name`` is one of ``IMPLEMENTATIONS``."""
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"attention implementation must be one of {', '.join(IMPLEMENTATIONS)}, got '{name}'")


def _choose(q: Tensor, bias_x: Tensor, bias_y: Tensor) -> str:
    if exporting():
        return "naive"
    if not torch.compiler.is_compiling() and triton_works(q):
        return "triton"
    if cpp_works(q):
        return "cpp"
    fits = q.shape[-1] + bias_x.shape[-1] + bias_y.shape[-1] <= FUSED_MAX_CHANNELS
    return "fused" if q.is_cuda and fits else "chunked"


def _fused(
    q: Tensor, k: Tensor, v: Tensor, bias_x: Tensor, bias_y: Tensor, padding: Tensor | None, mask: Tensor | None
) -> Tensor:
    heads, channels = q.shape[1], q.shape[-1]
    height, width = bias_y.shape[-1], bias_x.shape[-1]
    # The softmax ignores what is common to all keys. Without it the biases that matter are near zero, where half
    # precision is finest.
    outside = None if padding is None else padding.unflatten(-1, (height, width))
    bias_x = bias_x - _largest(bias_x, None if outside is None else outside.all(1))
    bias_y = bias_y - _largest(bias_y, None if outside is None else outside.all(2))
    rows = torch.eye(height, dtype=k.dtype, device=k.device).repeat_interleave(width, 0)
    columns = torch.eye(width, dtype=k.dtype, device=k.device).repeat(height, 1)
    codes = torch.cat([rows, columns], dim=-1).expand(len(k), heads, -1, -1)
    coded_q = torch.cat([q / math.sqrt(channels), bias_y.to(q.dtype), bias_x.to(q.dtype)], dim=-1)
    coded_k = torch.cat([k, codes], dim=-1)
    # Kernels want equal heads for keys and values, a multiple of 8 wide.
    total = -(-coded_q.shape[-1] // 8) * 8
    coded_q, coded_k, coded_v = (F.pad(part, (0, total - part.shape[-1])) for part in (coded_q, coded_k, v))
    return F.scaled_dot_product_attention(coded_q, coded_k, coded_v, attn_mask=mask, scale=1.0)[..., :channels]


def _largest(bias: Tensor, outside: Tensor | None) -> Tensor:
    bias = bias.detach()
    if outside is not None:
        bias = bias.masked_fill(outside[:, None, None], -math.inf)
    return bias.amax(-1, keepdim=True)
