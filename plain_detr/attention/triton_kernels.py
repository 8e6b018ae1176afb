"""The GPU kernels of ``plain_detr.attention.triton``; importing this module needs Triton.

A program owns some queries, and walks over the map column tile by column tile, each from top to bottom: the tile's part
of ``bias_x`` is read once, and every row needs one number a query of ``bias_y``. So the bias costs next to nothing
beside the dot products. The same walk gives the gradients of queries and biases; keys and values have a kernel of
their own, in which a program owns a column tile of one row.

Arrays are contiguous: q, out (P, Q, d), k, v (P, L, d), bias_x (P, Q, Wf), bias_y (P, Q, Hf), mask (N, L), one number
a query (P, Q). P pairs are the heads of the first image, then of the second, and so on.
"""

import triton
import triton.language as tl


@triton.jit
def _tile(pointer, pair, rows, count, columns, size):
    """Rows of one pair from a (P, count, size) array, zero outside."""
    start = pair.to(tl.int64) * count
    at = (start + rows)[:, None] * size + columns[None, :]
    return tl.load(pointer + at, mask=(rows[:, None] < count) & (columns[None, :] < size), other=0.0)


@triton.jit
def _put(pointer, value, pair, rows, count, columns, size):
    start = pair.to(tl.int64) * count
    at = (start + rows)[:, None] * size + columns[None, :]
    inside = (rows[:, None] < count) & (columns[None, :] < size)
    tl.store(pointer + at, value.to(pointer.dtype.element_ty), mask=inside)


@triton.jit
def _logits(
    q, key, bias, row_bias, mask, image, keys, inside, length, scale, MASKED: tl.constexpr, PRECISION: tl.constexpr
):
    """(queries, columns of one row), -inf right of the map."""
    logits = tl.dot(q, tl.trans(key), input_precision=PRECISION) * scale + bias + row_bias[:, None]
    if MASKED:
        added = tl.load(mask + image.to(tl.int64) * length + keys, mask=inside, other=0.0)
        logits += added[None, :]
    return tl.where(inside[None, :], logits, float("-inf"))


@triton.jit
def forward_kernel(
    q_ptr, k_ptr, v_ptr, x_ptr, y_ptr, mask, out_ptr, lse_ptr,
    queries, height, width, channels, heads, scale,
    MASKED: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    pair = tl.program_id(1)
    image, length = pair // heads, height * width
    rows = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    depth = tl.arange(0, BLOCK_D)
    start = pair.to(tl.int64) * queries
    q = _tile(q_ptr, pair, rows, queries, depth, channels)
    largest = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_Q], tl.float32)
    mixed = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for left in range(0, width, BLOCK_X):
        columns = left + tl.arange(0, BLOCK_X)
        inside = columns < width
        bias = _tile(x_ptr, pair, rows, queries, columns, width)
        for row in range(0, height):
            keys = row * width + columns
            # A column past the right border belongs to the next row: harmless, its weight is zero.
            key = _tile(k_ptr, pair, keys, length, depth, channels)
            value = _tile(v_ptr, pair, keys, length, depth, channels)
            row_bias = tl.load(y_ptr + (start + rows) * height + row, mask=rows < queries, other=0.0)
            logits = _logits(q, key, bias, row_bias, mask, image, keys, inside, length, scale, MASKED, PRECISION)
            higher = tl.maximum(largest, tl.max(logits, 1))
            safe = tl.where(higher == float("-inf"), 0.0, higher)
            weights = tl.exp(logits - safe[:, None])
            shrink = tl.exp(largest - safe)
            total = total * shrink + tl.sum(weights, 1)
            mixed = mixed * shrink[:, None] + tl.dot(weights.to(value.dtype), value, input_precision=PRECISION)
            largest = higher
    _put(out_ptr, mixed / total[:, None], pair, rows, queries, depth, channels)
    tl.store(lse_ptr + start + rows, largest + tl.log(total), mask=rows < queries)


@triton.jit
def query_kernel(
    q_ptr, k_ptr, v_ptr, x_ptr, y_ptr, mask, grad_ptr, lse_ptr, mean_ptr, grad_q, grad_x, grad_y,
    queries, height, width, channels, heads, scale,
    MASKED: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of queries and of both biases."""
    pair = tl.program_id(1)
    image, length = pair // heads, height * width
    rows = tl.program_id(0) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    depth = tl.arange(0, BLOCK_D)
    start = pair.to(tl.int64) * queries
    known = rows < queries
    q = _tile(q_ptr, pair, rows, queries, depth, channels)
    grad = _tile(grad_ptr, pair, rows, queries, depth, channels)
    lse = tl.load(lse_ptr + start + rows, mask=known, other=float("inf"))
    mean = tl.load(mean_ptr + start + rows, mask=known, other=0.0)
    total_q = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for left in range(0, width, BLOCK_X):
        columns = left + tl.arange(0, BLOCK_X)
        inside = columns < width
        bias = _tile(x_ptr, pair, rows, queries, columns, width)
        total_x = tl.zeros([BLOCK_Q, BLOCK_X], tl.float32)
        for row in range(0, height):
            keys = row * width + columns
            key = _tile(k_ptr, pair, keys, length, depth, channels)
            value = _tile(v_ptr, pair, keys, length, depth, channels)
            row_bias = tl.load(y_ptr + (start + rows) * height + row, mask=known, other=0.0)
            logits = _logits(q, key, bias, row_bias, mask, image, keys, inside, length, scale, MASKED, PRECISION)
            weights = tl.exp(logits - lse[:, None])
            change = weights * (tl.dot(grad, tl.trans(value), input_precision=PRECISION) - mean[:, None])
            total_q += tl.dot(change.to(key.dtype), key, input_precision=PRECISION)
            total_x += change
            # Only this program adds to these numbers; atomic so that one tile's sum is seen by the next.
            tl.atomic_add(grad_y + (start + rows) * height + row, tl.sum(change, 1), mask=known)
        _put(grad_x, total_x, pair, rows, queries, columns, width)
    _put(grad_q, total_q * scale, pair, rows, queries, depth, channels)


@triton.jit
def key_kernel(
    q_ptr, k_ptr, v_ptr, x_ptr, y_ptr, mask, grad_ptr, lse_ptr, mean_ptr, grad_k, grad_v,
    queries, height, width, channels, heads, scale,
    MASKED: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_X: tl.constexpr, BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Gradients of keys and values of one column tile of one row."""
    pair = tl.program_id(1)
    image, length = pair // heads, height * width
    tiles = tl.cdiv(width, BLOCK_X)
    row = tl.program_id(0) // tiles
    columns = (tl.program_id(0) % tiles) * BLOCK_X + tl.arange(0, BLOCK_X)
    inside = columns < width
    keys, depth = row * width + columns, tl.arange(0, BLOCK_D)
    start = pair.to(tl.int64) * queries
    key = _tile(k_ptr, pair, keys, length, depth, channels)
    value = _tile(v_ptr, pair, keys, length, depth, channels)
    total_k = tl.zeros([BLOCK_X, BLOCK_D], tl.float32)
    total_v = tl.zeros([BLOCK_X, BLOCK_D], tl.float32)
    for first in range(0, queries, BLOCK_Q):
        rows = first + tl.arange(0, BLOCK_Q)
        known = rows < queries
        q = _tile(q_ptr, pair, rows, queries, depth, channels)
        grad = _tile(grad_ptr, pair, rows, queries, depth, channels)
        lse = tl.load(lse_ptr + start + rows, mask=known, other=float("inf"))
        mean = tl.load(mean_ptr + start + rows, mask=known, other=0.0)
        bias = _tile(x_ptr, pair, rows, queries, columns, width)
        row_bias = tl.load(y_ptr + (start + rows) * height + row, mask=known, other=0.0)
        logits = _logits(q, key, bias, row_bias, mask, image, keys, inside, length, scale, MASKED, PRECISION)
        weights = tl.exp(logits - lse[:, None])
        total_v += tl.dot(tl.trans(weights.to(grad.dtype)), grad, input_precision=PRECISION)
        change = weights * (tl.dot(grad, tl.trans(value), input_precision=PRECISION) - mean[:, None])
        total_k += tl.dot(tl.trans(change.to(q.dtype)), q, input_precision=PRECISION)
    mine = tl.where(inside, keys, length)  # rows past the end are not written
    _put(grad_k, total_k * scale, pair, mine, length, depth, channels)
    _put(grad_v, total_v, pair, mine, length, depth, channels)
