"""Decoding of heatmap, size and offset to boxes: peaks are the cells largest in their 3x3 neighbourhood; no NMS."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from centerx.losses import gather_cells


class CenterDetections(NamedTuple):
    """The best peaks of each image, by descending score; equal scores by class, row, column.

    boxes: (N, k, 4) xyxy in cells, not clipped.
    scores: (N, k); 0 for filler, when an image has fewer peaks than k.
    classes: (N, k) int64.
    cell: (N, k) int64, row-major.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    cell: Tensor


def keep_peaks(heatmap: Tensor) -> Tensor:
    """Zero every cell that is not equal to the maximum of its 3x3 neighbourhood. (N, K, Hf, Wf) to the same."""
    return torch.where(F.max_pool2d(heatmap, 3, stride=1, padding=1) == heatmap, heatmap, 0.0)


def keep_peaks_without_equality(heatmap: Tensor) -> Tensor:
    """``keep_peaks`` from layers that every runtime has: max-pool, subtract, multiply, add, ReLU. float32 only.

    A cell is multiplied by ``relu((heatmap - maximum) * 1e9 + 1)``, which is 1 at a peak and 0 elsewhere. Only scores
    below 1/64 lie so close together that a neighbour of a peak keeps a part of its value. It is the released
    ``relu(heatmap - maximum + 1e-9) * 1e9``, in which exporters take the 1e-9 for nothing and leave it out.
    """
    maximum = F.max_pool2d(heatmap, 3, stride=1, padding=1)
    return heatmap * F.relu((heatmap - maximum) * 1e9 + 1)


def decode(heatmap: Tensor, size: Tensor, offset: Tensor | None, max_detections: int) -> CenterDetections:
    """Turn heads into boxes (CenterNet, section 4): the best peaks of the heatmap, see ``read_best_cells``."""
    return read_best_cells(keep_peaks(heatmap), size, offset, max_detections)


def read_best_cells(heatmap: Tensor, size: Tensor, offset: Tensor | None, count: int) -> CenterDetections:
    """The boxes at the highest values of a heatmap that is zero everywhere but at peaks.

    Args:
        heatmap: (N, K, Hf, Wf) after the sigmoid.
        size: (N, 2, Hf, Wf) or, per class, (N, 2 K, Hf, Wf); cells.
        offset: (N, 2, Hf, Wf) cells; None puts every centre in the middle of its cell.
        count: k per image over all classes; fewer when the map has fewer entries.
    """
    height, width = heatmap.shape[2:]
    flat = heatmap.flatten(1)
    scores, index = flat.topk(min(count, flat.shape[1]))
    index, by_place = index.sort()
    scores, by_score = scores.gather(1, by_place).sort(descending=True, stable=True)
    index = index.gather(1, by_score)
    classes = index // (height * width)
    cell = index - classes * (height * width)

    row = cell // width
    corner = torch.stack([cell - row * width, row], dim=-1).to(size.dtype)  # no %: it does not export
    centre = corner + (0.5 if offset is None else gather_cells(offset, cell))
    half = gather_cells(size, cell, classes) / 2
    return CenterDetections(torch.cat([centre - half, centre + half], dim=-1), scores, classes, cell)
