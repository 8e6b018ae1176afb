"""Run by ``test_triton_attention`` in Triton's interpreter: largest errors over the naive form, as json."""

import json
import math

import torch

from plain_detr.attention.biased import biased_attention

NAMES = ("out", "q", "k", "v", "bias_x", "bias_y")
# images, heads, queries, (Hf, Wf), channels, padding value or None: odd sizes, several blocks of queries, several tiles
# of columns.
CASES = {
    "one cell": (1, 1, 3, (1, 1), 4, None),
    "padded with -inf": (2, 2, 5, (3, 4), 8, -math.inf),
    "padded with -100": (2, 1, 5, (2, 5), 16, -100.0),
    "two blocks of queries": (1, 1, 70, (2, 5), 8, None),
    "two tiles of columns, channels no power of two": (1, 1, 4, (2, 37), 20, -math.inf),
}


def errors(
    images: int, heads: int, queries: int, hw: tuple[int, int], channels: int, value: float | None
) -> dict[str, float]:
    """Largest absolute difference of the output and of every gradient, over the largest value."""
    height, width = hw
    generator = torch.Generator().manual_seed(0)
    padding = None
    if value is not None:
        padding = torch.zeros(images, height, width, dtype=torch.bool)
        padding[-1, height - 1 :] = padding[-1, :, width - 2 :] = True
        padding = padding.flatten(1)
    sizes = [(queries, channels), (height * width, channels), (height * width, channels), (queries, width)]
    sizes.append((queries, height))
    tensors = [torch.randn(images, heads, *size, generator=generator) for size in sizes]
    results = []
    for implementation in ("triton", "naive"):
        leaves = [tensor.clone().requires_grad_() for tensor in tensors]
        padding_value = -math.inf if value is None else value
        out = biased_attention(*leaves, padding, padding_value=padding_value, implementation=implementation)
        (out * torch.linspace(-1, 1, out.numel()).view_as(out)).sum().backward()
        results.append([out.detach(), *(leaf.grad for leaf in leaves)])
    return {
        name: float((one - other).abs().max() / other.abs().max().clamp(min=0.1))
        for name, one, other in zip(NAMES, *results)
    }


if __name__ == "__main__":
    print(json.dumps({name: errors(*case) for name, case in CASES.items()}))
