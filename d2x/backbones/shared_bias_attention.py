"""Attention with one bias table for a whole batch, a block of logits at a time, forward and backward.

A block of logits lives in one piece of memory that stays in the cache: the bias is written into it, a matrix product
adds the dot products, and softmax and the product with the values follow before the next block. That memory is taken
once for all blocks: on a CPU new memory comes page by page as it is first written, which takes longer than the
arithmetic. The backward pass makes every block again, so nothing of the size queries x keys is kept.

The blocks' memory and their spans are there for other forms of bias, too (``plain_detr.attention.chunked``).
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

# Logits of a block: what the cache of a CPU holds.
BLOCK_LOGITS_CPU = 1 << 20
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
    if q.is_cuda or not torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype)[None], scale=1.0)
    return _SharedBias.apply(*(one.transpose(0, 1) for one in (q, k, v)), bias).transpose(0, 1)


class Scratch:
    """Memory for the two matrices of a block: its logits, or in the backward pass their gradients, and its weights."""

    def __init__(self, like: Tensor, rows: Sequence[int], keys: int, limit: int):
        largest = min(math.prod(rows) * keys, max(limit, MIN_QUERIES * keys))
        self._logits, self._weights = like.new_empty(2, largest)

    def logits(self, shape: Sequence[int]) -> Tensor:
        """Uninitialised; the same memory at every call."""
        return self._logits[: math.prod(shape)].view(shape)

    def weights(self, shape: Sequence[int]) -> Tensor:
        """See ``logits``."""
        return self._weights[: math.prod(shape)].view(shape)


def spans(items: int, queries: int, keys: int, limit: int) -> Iterator[tuple[slice, slice]]:
    """Blocks of (items, queries) x keys below the limit: several whole items, or some of the queries of one."""
    together = max(1, limit // max(1, queries * keys))
    step = queries if queries * keys <= limit else max(MIN_QUERIES, limit // keys)
    for first in range(0, items, together):
        for start in range(0, queries, step):
            yield slice(first, first + together), slice(start, start + step)


def with_mean(grad_out: Tensor, out: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """One more channel each, so that their product is dL/dweights less its mean under the weights.

    That mean, needed for the gradient of a softmax, is sum(grad_out * out); this saves a pass over the logits.
    """
    mean = (grad_out * out).sum(-1, keepdim=True)
    return torch.cat([grad_out, -mean], dim=-1), torch.cat([v, torch.ones_like(v[..., :1])], dim=-1)


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
    def backward(ctx, grad_out):
        saved = ctx.saved_tensors
        dtype = torch.promote_types(saved[0].dtype, torch.float32)
        q, k, v, bias, out, grad_out = (one.to(dtype) for one in (*saved, grad_out))
        grads = [torch.zeros_like(one) for one in (q, k, v, bias)]
        grad_q, grad_k, grad_v, grad_bias = grads
        grad_out, v = with_mean(grad_out, out, v)
        scratch = Scratch(q, q.shape[1:3], q.shape[2], BLOCK_LOGITS_CPU)
        for head, items, rows in _shared_blocks(q):
            weights = _shared_weights(q, k, bias, head, items, rows, scratch)
            grad = grad_out[head, items, rows]
            grad_v[head, items] += weights.transpose(1, 2) @ grad[..., :-1]
            grad_logits = scratch.logits(weights.shape)
            torch.bmm(grad, v[head, items].transpose(1, 2), out=grad_logits).mul_(weights)
            grad_bias[head, rows] += grad_logits.sum(0)
            grad_q[head, items, rows] = grad_logits @ k[head, items]
            grad_k[head, items] += grad_logits.transpose(1, 2) @ q[head, items, rows]
        return tuple(grad.to(one.dtype) for grad, one in zip(grads, saved))


def _shared_weights(
    q: Tensor, k: Tensor, bias: Tensor, head: int, items: slice, rows: slice, scratch: Scratch
) -> Tensor:
    """Probabilities of one block, in ``scratch``."""
    q, k, bias = q[head, items, rows], k[head, items], bias[head, rows]
    logits = scratch.logits((*q.shape[:2], k.shape[1]))
    torch.baddbmm(bias, q, k.transpose(1, 2), out=logits)
    return torch.softmax(logits, -1, out=scratch.weights(logits.shape))


def _shared_blocks(q: Tensor) -> Iterator[tuple[int, slice, slice]]:
    for items, rows in spans(q.shape[1], q.shape[2], q.shape[2], BLOCK_LOGITS_CPU):
        for head in range(len(q)):
            yield head, items, rows
