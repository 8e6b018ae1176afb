"""The forms of biased attention are one function."""

import math

import pytest
import torch

from plain_detr.attention import chunked as chunked_attention
from plain_detr.attention.biased import attention_weights, biased_attention


def inputs(n=2, heads=2, queries=5, channels=4, height=3, width=7, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [
        (n, heads, queries, channels),
        (n, heads, height * width, channels),
        (n, heads, height * width, channels),
        (n, heads, queries, width),
        (n, heads, queries, height),
    ]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def padding_of(n, height, width):
    """The first image fills the map, the others lack rows and columns."""
    padding = torch.zeros(n, height, width, dtype=torch.bool)
    for image in range(1, n):
        padding[image, max(1, height - image) :] = True
        padding[image, :, max(1, width - 2 * image) :] = True
    return padding.flatten(1)


def four_loops(q, k, v, bias_x, bias_y, padding, value):
    out = torch.zeros_like(q)
    width = bias_x.shape[-1]
    for image in range(q.shape[0]):
        for head in range(q.shape[1]):
            for query in range(q.shape[2]):
                logits = []
                for key in range(k.shape[2]):
                    logit = (q[image, head, query] * k[image, head, key]).sum() / math.sqrt(q.shape[-1])
                    logit = logit + bias_y[image, head, query, key // width] + bias_x[image, head, query, key % width]
                    logits.append(logit + (value if padding[image, key] else 0))
                out[image, head, query] = torch.stack(logits).softmax(0) @ v[image, head]
    return out


@pytest.mark.parametrize("value", [-math.inf, -100.0, -1.0])
@pytest.mark.parametrize("implementation", ["naive", "fused", "chunked", "auto"])
def test_equals_the_formula_in_loops(implementation, value):
    tensors = [tensor.float() for tensor in inputs()]
    padding = padding_of(2, 3, 7)
    out = biased_attention(*tensors, padding, padding_value=value, implementation=implementation)
    torch.testing.assert_close(out, four_loops(*tensors, padding, value), rtol=0, atol=1e-5)


SIZES = [
    {"height": 1, "width": 1},
    {"height": 1, "width": 13},
    {"height": 9, "width": 1},
    {"height": 5, "width": 7, "channels": 32, "queries": 11},
    # Wider than a fused kernel's head on a GPU: 32 + 100 + 150 channels.
    {"height": 100, "width": 150, "channels": 32, "queries": 3, "heads": 1},
]


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size['height']}x{size['width']}")
@pytest.mark.parametrize("implementation", ["fused", "chunked", "auto"])
def test_lean_equals_naive_in_value_and_gradient(implementation, size, padded, monkeypatch):
    monkeypatch.setattr(chunked_attention, "BLOCK_LOGITS_CPU", 100)  # several chunks
    results = []
    for form in ("naive", implementation):
        tensors = [tensor.detach().float().requires_grad_() for tensor in inputs(**size)]
        padding = padding_of(2, size["height"], size["width"]) if padded else None
        out = biased_attention(*tensors, padding, implementation=form)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        results.append([out, *(tensor.grad for tensor in tensors)])
    for name, naive, lean in zip(("out", "q", "k", "v", "bias_x", "bias_y"), *results):
        torch.testing.assert_close(lean, naive, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")


def test_chunked_gradients_equal_finite_differences():
    tensors = inputs(n=1, heads=1, queries=3, channels=2, height=2, width=3)
    padding = torch.tensor([[False, False, True, False, False, True]])

    def attend(q, k, v, bias_x, bias_y):
        return biased_attention(q, k, v, bias_x, bias_y, padding, implementation="naive")

    def chunked(q, k, v, bias_x, bias_y):
        return biased_attention(q, k, v, bias_x, bias_y, padding, implementation="chunked")

    wanted = torch.autograd.grad(attend(*tensors).square().sum(), tensors)
    found = torch.autograd.grad(chunked(*tensors).square().sum(), tensors)
    for one, other in zip(wanted, found):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", ["fused", "chunked", "naive"])
def test_large_biases_stay_exact(implementation):
    """Offsets of a thousand pixels give biases in the thousands; only their differences count."""
    q, k, v, bias_x, bias_y = (tensor.detach() for tensor in inputs())
    shifted = biased_attention(q, k, v, bias_x + 3000, bias_y - 2000, implementation="naive")
    tensors = [tensor.float() for tensor in (q, k, v, bias_x + 3000, bias_y - 2000)]
    out = biased_attention(*tensors, implementation=implementation)
    torch.testing.assert_close(out, shifted.float(), rtol=0, atol=2e-3)


def test_without_bias_it_is_plain_attention():
    q, k, v, *_ = inputs()
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    torch.testing.assert_close(biased_attention(q, k, v), weights @ v)


def test_full_bias_equals_the_axial_one_it_is_made_of():
    q, k, v, bias_x, bias_y = inputs()
    full = (bias_y[..., :, None] + bias_x[..., None, :]).flatten(-2)
    padding = padding_of(2, 3, 7)
    out = biased_attention(q, k, v, padding=padding, bias=full)
    naive = biased_attention(q, k, v, bias_x, bias_y, padding, implementation="naive")
    torch.testing.assert_close(out, naive, rtol=1e-5, atol=1e-5)


def test_weights_are_those_of_the_attention():
    q, k, v, bias_x, bias_y = inputs(dtype=torch.float32)
    padding = padding_of(2, 3, 7)
    weights = attention_weights(q, k, bias_x, bias_y, padding)
    assert (weights[1][..., padding[1]] == 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 5))
    torch.testing.assert_close(weights @ v, biased_attention(q, k, v, bias_x, bias_y, padding), rtol=1e-5, atol=1e-5)


def test_no_tensor_of_every_query_and_pixel_is_kept_for_the_backward_pass():
    tensors = [tensor.float() for tensor in inputs(queries=40, height=30, width=30, channels=8)]
    pairs, largest = 2 * 2 * 40 * 900, 0

    def seen(tensor):
        nonlocal largest
        largest = max(largest, tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(seen, lambda tensor: tensor):
        biased_attention(*tensors, implementation="chunked")
    assert 0 < largest < pairs / 2


def test_bad_arguments():
    q, k, v, bias_x, bias_y = inputs()
    with pytest.raises(ValueError, match="one of auto, triton"):
        biased_attention(q, k, v, bias_x, bias_y, implementation="flash")
    with pytest.raises(ValueError, match="3 x 6 cells does not fit 21 keys"):
        biased_attention(q, k, v, bias_x[..., :6], bias_y)
