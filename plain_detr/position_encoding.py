"""Sine position codes: of the cells of a feature map, and of boxes."""

import math

import torch
from torch import Tensor

from plain_detr.padding import FeatureGrid

TEMPERATURE = 10000.0


def sine_code(position: Tensor, channels: int) -> Tensor:
    """Sine and cosine of a position at ``channels / 2`` frequencies, interleaved (Vaswani et al., 2017).

    Args:
        position: any shape, radians of the highest frequency.
        channels: even.

    Returns:
        (..., channels) float32.
    """
    exponent = 2 * torch.arange(channels // 2, dtype=torch.float32, device=position.device) / channels
    angle = position.float()[..., None] / TEMPERATURE**exponent
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)


def grid_code(grid: FeatureGrid, channels: int, *, normalize: bool, device: torch.device) -> Tensor:
    """Position code of every cell centre, y in the first half of the channels, x in the second.

    Args:
        grid: the map.
        channels: C, a multiple of 4.
        normalize: True ("sine"): the valid area of each image spans 2 pi. False ("sine_unnorm"): one cell does.

    Returns:
        (N, Hf, Wf, C) float32. Codes of padded cells are finite and mean nothing.
    """
    height, width = grid.hw
    valid = torch.as_tensor(grid.valid, dtype=torch.float32, device=device) + 1e-6
    y = torch.arange(height, dtype=torch.float32, device=device).expand(valid.shape[0], -1) + 0.5
    x = torch.arange(width, dtype=torch.float32, device=device).expand(valid.shape[0], -1) + 0.5
    if normalize:
        y, x = y / valid[:, :1], x / valid[:, 1:]
    y, x = (sine_code(2 * math.pi * axis, channels // 2) for axis in (y, x))
    return torch.cat([y[:, :, None].expand(-1, -1, width, -1), x[:, None].expand(-1, height, -1, -1)], dim=-1)


def box_code(boxes: Tensor, channels: int) -> Tensor:
    """Position code of boxes, ``channels / 4`` channels each for cx, cy, w and h.

    The coordinates are multiplied by 2 pi whatever their unit: for pixel boxes that is what the released models were
    trained with.

    Args:
        boxes: (N, Q, 4) (cx, cy, w, h), coder space.

    Returns:
        (N, Q, channels) float32.
    """
    return sine_code(2 * math.pi * boxes.float(), channels // 4).flatten(-2)
