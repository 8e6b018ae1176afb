"""Attention with one bias table for a whole batch, whose backward pass holds a block of logits at a time.

A block of logits lives in one piece of memory that stays in the cache: the bias is written into it, a matrix product
adds the dot products, and softmax and the product with the values follow before the next block. That memory is taken
once for all blocks: on a CPU new memory comes page by page as it is first written, which takes longer than the
arithmetic. torch's fused attention for the CPU gives no gradient to a mask.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from d2x.backbones.tracing import recording

# Logits of a block: what the cache of a CPU holds.
BLOCK_LOGITS = 1 << 20
# Queries of a block at least.
MIN_QUERIES = 8


def shared_bias_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T + bias) v; the dot products are not scaled.

    Args:
        q, k, v: (N, A, T, d), all of one floating type.
        bias: (A, T, T), the same for all N.

    Returns:
        (N, A, T, d).
    """
    if torch.compiler.is_exporting():  # the fused operator has one memory layout when traced, another when decomposed
        return (q @ k.transpose(-1, -2) + bias.to(q.dtype)).softmax(-1) @ v
    if q.is_cuda or not torch.is_grad_enabled() or recording():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype)[None], scale=1.0)
    return _SharedBias.apply(*(part.transpose(0, 1) for part in (q, k, v)), bias).transpose(0, 1)


class _SharedBias(torch.autograd.Function):
    """(A, N, T, d) in and out."""

    @staticmethod
    def forward(ctx, q, k, v, bias):
        # Inside of here nobody asks for gradients, so torch takes its fused kernel, which cannot give the bias one.
        parts = (part.detach().transpose(0, 1) for part in (q, k, v))
        mask = bias.detach().to(q.dtype)[None]
        out = F.scaled_dot_product_attention(*parts, attn_mask=mask, scale=1.0).transpose(0, 1)
        ctx.save_for_backward(q, k, v, bias, out)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_out):  # pyright: ignore[reportIncompatibleMethodOverride]  the base takes any number
        saved = ctx.saved_tensors
        dtype = torch.promote_types(saved[0].dtype, torch.float32)
        q, k, v, bias, out, grad_out = (part.to(dtype) for part in (*saved, grad_out))
        grads = [torch.zeros_like(part) for part in (q, k, v, bias)]
        grad_q, grad_k, grad_v, grad_bias = grads
        # One more channel each, so that their product is dL/dweights less its mean under the weights, which the
        # gradient of a softmax takes off and which is sum(grad_out * out): no pass over the logits for it.
        grad_out = torch.cat([grad_out, -(grad_out * out).sum(-1, keepdim=True)], dim=-1)
        v = torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)
        tokens = q.shape[2]
        memory = q.new_empty(2, min(q.shape[1] * tokens * tokens, max(BLOCK_LOGITS, MIN_QUERIES * tokens)))
        for head, items, rows in _blocks(q):
            queries, keys, grad = q[head, items, rows], k[head, items], grad_out[head, items, rows]
            shape = (*queries.shape[:2], tokens)
            logits, weights = (part[: shape[0] * shape[1] * tokens].view(shape) for part in memory)
            torch.baddbmm(bias[head, rows], queries, keys.transpose(1, 2), out=logits)
            torch.softmax(logits, -1, out=weights)
            grad_v[head, items] += weights.transpose(1, 2) @ grad[..., :-1]
            grad_logits = torch.bmm(grad, v[head, items].transpose(1, 2), out=logits).mul_(weights)
            grad_bias[head, rows] += grad_logits.sum(0)
            grad_q[head, items, rows] = grad_logits @ keys
            grad_k[head, items] += grad_logits.transpose(1, 2) @ queries
        return tuple(grad.to(part.dtype) for grad, part in zip(grads, saved))


def _blocks(q: Tensor) -> Iterator[tuple[int, slice, slice]]:
    """Head, images and queries of each block: several whole images, or some of the queries of one."""
    heads, items, tokens = q.shape[:3]
    together = max(1, BLOCK_LOGITS // max(1, tokens * tokens))
    step = tokens if tokens * tokens <= BLOCK_LOGITS else max(MIN_QUERIES, BLOCK_LOGITS // tokens)
    for first in range(0, items, together):
        for start in range(0, tokens, step):
            for head in range(heads):
                yield head, slice(first, first + together), slice(start, start + step)
