"""Attention with an axial bias, a few rows of logits at a time, forward and backward.

The bias is one number for every row and one for every column of the map, of each query. Why blocks save memory and time
is told in ``d2x.backbones.shared_bias_attention``, whose blocks these are.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from d2x.backbones.shared_bias_attention import BLOCK_LOGITS_CPU, Scratch, spans, with_mean

BLOCK_LOGITS_GPU = 1 << 25  # what is little for a GPU


def axial_bias_attention(
    q: Tensor, k: Tensor, v: Tensor, bias_x: Tensor, bias_y: Tensor, mask: Tensor | None
) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias + mask) v in float32 at least, whatever the types.

    Args:
        q: (N, h, Q, d).
        k, v: (N, h, L, d), L = Hf * Wf row by row.
        bias_x, bias_y: (N, h, Q, Wf) and (N, h, Q, Hf).
        mask: (N, L) added to every query's logits, or None.

    Returns:
        (N, h, Q, d) in the type of ``v``.
    """
    images, heads = q.shape[:2]
    if mask is not None:
        mask = mask.repeat_interleave(heads, 0)
    with torch.autocast(q.device.type, enabled=False):
        dtype = torch.promote_types(q.dtype, torch.float32)
        parts = (q / math.sqrt(q.shape[-1]), k, v, bias_x, bias_y)
        out = _AxialBias.apply(*(part.to(dtype).flatten(0, 1).contiguous() for part in parts), mask)
    return out.unflatten(0, (images, heads)).to(v.dtype)


class _AxialBias(torch.autograd.Function):
    """(P, Q, d) queries, scaled already, of P pairs of an image and a head."""

    @staticmethod
    def forward(ctx, q, k, v, bias_x, bias_y, mask):
        out, scratch = torch.empty_like(q), Scratch(q, q.shape[:2], k.shape[1], _limit(q))
        for pairs, rows in _blocks(q, k):
            weights = _axial_weights(q, k, bias_x, bias_y, mask, pairs, rows, scratch)
            out[pairs, rows] = torch.bmm(weights, v[pairs])
        ctx.save_for_backward(q, k, v, bias_x, bias_y, mask, out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out):
        q, k, v, bias_x, bias_y, mask, out = ctx.saved_tensors
        cells = (bias_y.shape[-1], bias_x.shape[-1])
        grads = [torch.zeros_like(one) for one in (q, k, v, bias_x, bias_y)]
        grad_q, grad_k, grad_v, grad_x, grad_y = grads
        grad_out, v = with_mean(grad_out, out, v)
        scratch = Scratch(q, q.shape[:2], k.shape[1], _limit(q))
        for pairs, rows in _blocks(q, k):
            weights = _axial_weights(q, k, bias_x, bias_y, mask, pairs, rows, scratch)
            grad = grad_out[pairs, rows]
            grad_v[pairs].baddbmm_(weights.transpose(1, 2), grad[..., :-1])
            grad_logits = scratch.logits(weights.shape)
            torch.bmm(grad, v[pairs].transpose(1, 2), out=grad_logits).mul_(weights)
            by_cell = grad_logits.unflatten(-1, cells)
            grad_x[pairs, rows], grad_y[pairs, rows] = by_cell.sum(-2), by_cell.sum(-1)
            grad_q[pairs, rows] = torch.bmm(grad_logits, k[pairs])
            grad_k[pairs].baddbmm_(grad_logits.transpose(1, 2), q[pairs, rows])
        return *grads, None


def _axial_weights(
    q: Tensor,
    k: Tensor,
    bias_x: Tensor,
    bias_y: Tensor,
    mask: Tensor | None,
    pairs: slice,
    rows: slice,
    scratch: Scratch,
) -> Tensor:
    """Probabilities of one block, in ``scratch``."""
    x, y = bias_x[pairs, rows, None, :], bias_y[pairs, rows, :, None]
    shape = (*x.shape[:2], k.shape[1])
    logits = scratch.logits(shape)
    torch.add(x, y, out=logits.unflatten(-1, (y.shape[2], x.shape[3])))
    if mask is not None:
        logits += mask[pairs, None]
    logits.baddbmm_(q[pairs, rows], k[pairs].transpose(1, 2))
    return torch.softmax(logits, -1, out=scratch.weights(shape))


def _blocks(q: Tensor, k: Tensor) -> Iterator[tuple[slice, slice]]:
    """Pairs and queries of each block."""
    return spans(len(q), q.shape[1], k.shape[1], _limit(q))


def _limit(q: Tensor) -> int:
    return BLOCK_LOGITS_GPU if q.is_cuda else BLOCK_LOGITS_CPU
