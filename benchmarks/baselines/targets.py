"""CenterNet's targets by a Python loop over images and objects, and their loss on every cell, as released."""

import math

import numpy as np
import torch
from torch import Tensor

from centerx.predictions import CenterTargets


def loop_targets(
    boxes: list[Tensor],
    classes: list[Tensor],
    *,
    num_classes: int,
    stride: int,
    grid_hw: tuple[int, int],
    min_overlap: float,
    slots: int,
) -> CenterTargets:
    """``centerx.targets.make_targets`` object by object, with a dense heatmap, (N, K, Hf, Wf).

    Args:
        boxes, classes, num_classes, stride, grid_hw, min_overlap: as there.
        slots: rows of the per-object tensors, at least the largest number of boxes.
    """  # fmt: skip
    images = [_image_targets(*one, num_classes, stride, grid_hw, min_overlap, slots) for one in zip(boxes, classes)]
    maps = [torch.stack(parts) for parts in zip(*images)]
    return CenterTargets(*maps, labelled=torch.ones(len(boxes), num_classes, dtype=torch.bool))


def _image_targets(boxes, classes, num_classes, stride, grid_hw, min_overlap, slots) -> tuple[Tensor, ...]:
    height, width = grid_hw
    heatmap = np.zeros((num_classes, height, width), dtype=np.float32)
    size, offset = torch.zeros(slots, 2), torch.zeros(slots, 2)
    cell, kinds = torch.zeros(slots, dtype=torch.int64), torch.zeros(slots, dtype=torch.int64)
    valid = torch.zeros(slots, dtype=torch.bool)
    for row in range(len(boxes)):
        x1, y1, x2, y2 = (float(side) / stride for side in boxes[row])
        centre_x, centre_y = (x1 + x2) / 2, (y1 + y2) / 2
        x = min(max(math.floor(centre_x), 0), width - 1)
        y = min(max(math.floor(centre_y), 0), height - 1)
        draw_bump(heatmap[int(classes[row])], x, y, max(0, int(radius(x2 - x1, y2 - y1, min_overlap))))
        size[row] = torch.tensor([x2 - x1, y2 - y1])
        offset[row] = torch.tensor([centre_x - x, centre_y - y])
        cell[row], kinds[row], valid[row] = y * width + x, classes[row], True
    return torch.from_numpy(heatmap), cell, size, offset, kinds, valid


def radius(width: float, height: float, min_overlap: float) -> float:
    """The smallest of the three radii of ``centerx.gaussian.gaussian_radius``, for one box."""
    total, area = width + height, width * height
    roots = []
    for a, b, c, sign in (
        (1, total, area * (1 - min_overlap) / (1 + min_overlap), -1),
        (4, 2 * total, (1 - min_overlap) * area, -1),
        (4 * min_overlap, -2 * min_overlap * total, (min_overlap - 1) * area, 1),
    ):
        roots.append((b + sign * math.sqrt(max(b * b - 4 * a * c, 0))) / (2 * a))
    return min(roots)


def draw_bump(heatmap: np.ndarray, x: int, y: int, reach: int) -> None:
    """Draw one bump into (Hf, Wf), in place; the larger value stays."""
    height, width = heatmap.shape
    rows, columns = np.ogrid[-reach : reach + 1, -reach : reach + 1]
    bump = np.exp(-(rows**2 + columns**2) / (2 * ((2 * reach + 1) / 6) ** 2)).astype(np.float32)
    left, right = min(x, reach), min(width - x, reach + 1)
    top, bottom = min(y, reach), min(height - y, reach + 1)
    place = heatmap[y - top : y + bottom, x - left : x + right]
    np.maximum(place, bump[reach - top : reach + bottom, reach - left : reach + right], out=place)


def dense_focal_loss(logits: Tensor, target: Tensor) -> Tensor:
    """``centerx.heatmap_losses.heatmap_focal_loss`` with a dense target, one eager operation after another."""
    probability = logits.sigmoid().clamp(min=1e-12)
    positive, negative = target.eq(1).float(), target.lt(1).float()
    found = torch.log(probability) * (1 - probability) ** 2 * positive
    rejected = torch.log(1 - probability) * probability**2 * (1 - target) ** 4 * negative
    return -(found.sum() + rejected.sum()) / positive.sum().clamp(min=1)
