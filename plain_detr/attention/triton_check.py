"""Whether the attention kernels can be trusted on the machine at hand."""

import functools
import logging
import math

import torch
from torch import Tensor

from plain_detr.attention.naive import naive_biased_attention
from plain_detr.attention.triton import MAX_CHANNELS, kernels, triton_attention

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def triton_works(q: Tensor) -> bool:
    """Whether "auto" may take the kernels: a GPU and a type that they know, on which they have proven themselves."""
    if not q.is_cuda or q.dtype not in _DTYPES or q.shape[-1] > MAX_CHANNELS or kernels() is None:
        return False
    return _proven(q.device, q.dtype, q.shape[-1])


@functools.cache
def _proven(device: torch.device, dtype: torch.dtype, channels: int) -> bool:
    """Value and gradients of one small attention against the formula, once a process."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 2, 70, channels), (1, 2, 5 * 18, channels), (1, 2, 5 * 18, channels), (1, 2, 70, 18), (1, 2, 70, 5)]
    tensors = [torch.randn(shape, generator=generator).to(device, dtype) for shape in shapes]
    padding = torch.zeros(1, 5, 18, dtype=torch.bool, device=device)
    padding[:, :, 15:] = True
    padding = padding.flatten(1)
    mask = torch.zeros(padding.shape, device=device).masked_fill(padding, -math.inf)
    results = []
    try:
        with torch.enable_grad(), torch.autocast(device.type, enabled=False):
            for attend in (
                lambda *x: triton_attention(*x, mask),
                lambda *x: naive_biased_attention(*(one.float() for one in x), padding),
            ):
                leaves = [one.clone().requires_grad_() for one in tensors]
                out = attend(*leaves)
                out.float().square().sum().backward()
                results.append([out, *(leaf.grad for leaf in leaves)])
        tolerance = 1e-3 if dtype == torch.float32 else 5e-2
        for one, other in zip(*results):
            error = (one.float() - other.float()).abs().max() / other.float().abs().max()
            if not error < tolerance:
                raise ArithmeticError(f"relative error {float(error):.2g}")
    except Exception as error:  # whatever a compiler or driver raises: there are other ways to compute this
        logging.getLogger(__name__).warning("attention kernels are not used on this GPU: %s", error)
        return False
    return True
