"""Attention with an axial bias, a block of logits at a time, which is made again for the gradients."""

import math

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# Logits of a block: what stays in the cache of a CPU, and what is little for a GPU.
BLOCK_LOGITS_CPU = 1 << 20
BLOCK_LOGITS_GPU = 1 << 25
# Queries of a block at least.
MIN_QUERIES = 8


def chunked_attention(q: Tensor, k: Tensor, v: Tensor, bias_x: Tensor, bias_y: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias + mask) v in float32 at least, whatever the types.

    Args:
        q: (N, h, Q, d).
        k, v: (N, h, L, d), L = Hf * Wf row by row.
        bias_x, bias_y: (N, h, Q, Wf) and (N, h, Q, Hf).
        mask: (N, L) added to every query's logits, or None.

    Returns:
        (N, h, Q, d) in the type of ``v``.
    """
    limit = BLOCK_LOGITS_GPU if q.is_cuda else BLOCK_LOGITS_CPU
    queries = max(MIN_QUERIES, limit // (k.shape[2] * q.shape[0] * q.shape[1]))
    dtype = torch.promote_types(q.dtype, torch.float32)
    with torch.autocast(q.device.type, enabled=False):
        scaled = q / math.sqrt(q.shape[-1])
        scaled, keys, values, bias_x, bias_y = (part.to(dtype) for part in (scaled, k, v, bias_x, bias_y))
        blocks = [
            checkpoint(_block, *rows, keys, values, mask, use_reentrant=False, preserve_rng_state=False)
            for rows in zip(*(part.split(queries, dim=2) for part in (scaled, bias_x, bias_y)))
        ]
    return torch.cat(blocks, dim=2).to(v.dtype)


def _block(q: Tensor, bias_x: Tensor, bias_y: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    logits = (bias_y[..., :, None] + bias_x[..., None, :]).flatten(-2)
    if mask is not None:
        logits = logits + mask[:, None, None]
    logits = torch.baddbmm(logits.flatten(0, 1), q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2))
    return torch.bmm(logits.softmax(-1), v.flatten(0, 1)).view_as(q)
