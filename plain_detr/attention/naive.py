"""Biased attention as its formula reads, every logit in memory: the oracle of the tests, and what is exported."""

import math

import torch
from torch import Tensor


def attention_weights(
    q: Tensor,
    k: Tensor,
    bias_x: Tensor | None,
    bias_y: Tensor | None,
    padding: Tensor | None,
    *,
    padding_value: float = -math.inf,
    bias: Tensor | None = None,
) -> Tensor:
    """(N, h, Q, L) attention probabilities, float32; arguments as in ``biased.biased_attention``."""
    logits = q.float() @ k.float().transpose(-1, -2) / math.sqrt(q.shape[-1])
    if bias_x is not None and bias_y is not None:
        logits = logits + (bias_y.float()[..., :, None] + bias_x.float()[..., None, :]).flatten(-2)
    if bias is not None:
        logits = logits + bias.float()
    mask = padding_mask(padding, padding_value, torch.float32)
    return (logits if mask is None else logits + mask).softmax(-1)


def naive_biased_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    bias_x: Tensor | None,
    bias_y: Tensor | None,
    padding: Tensor | None,
    *,
    padding_value: float = -math.inf,
) -> Tensor:
    """``plain_detr.attention.biased.biased_attention`` with every logit in memory."""
    return attention_weights(q, k, bias_x, bias_y, padding, padding_value=padding_value).to(v.dtype) @ v


def padding_mask(padding: Tensor | None, value: float, dtype: torch.dtype) -> Tensor | None:
    """(N, 1, 1, L) to add to the logits."""
    if padding is None:
        return None
    zero = torch.zeros(padding.shape, dtype=dtype, device=padding.device)
    return zero.masked_fill(padding, value)[:, None, None]
