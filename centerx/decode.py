"""Maps to boxes: every cell that is the largest of its 3x3 neighbourhood is a detection; no NMS."""

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


def decode(heatmap: Tensor, size: Tensor, offset: Tensor | None, max_detections: int) -> CenterDetections:
    """Turn heads into boxes (CenterNet, section 4).

    Args:
        heatmap: (N, K, Hf, Wf) after the sigmoid.
        size: (N, 2, Hf, Wf) or, per class, (N, 2 K, Hf, Wf); cells.
        offset: (N, 2, Hf, Wf) cells; None puts every centre in the middle of its cell.
        max_detections: k per image over all classes; fewer when the map has fewer entries.
    """
    height, width = heatmap.shape[2:]
    peaks = keep_peaks(heatmap).flatten(1)
    scores, index = peaks.topk(min(max_detections, peaks.shape[1]))
    index, by_place = index.sort()
    scores, by_score = scores.gather(1, by_place).sort(descending=True, stable=True)
    index = index.gather(1, by_score)
    classes = index // (height * width)
    cell = index - classes * (height * width)

    corner = torch.stack([cell % width, cell // width], dim=-1).to(size.dtype)
    centre = corner + (0.5 if offset is None else gather_cells(offset, cell))
    half = gather_cells(size, cell, classes) / 2
    return CenterDetections(torch.cat([centre - half, centre + half], dim=-1), scores, classes, cell)
