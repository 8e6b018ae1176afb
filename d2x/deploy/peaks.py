"""Detections in numpy, and their reading from peak maps: the caller's side of the forms "peaks" and "heads"."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class Detections(NamedTuple):
    """Detections of one image, by descending score.

    Attributes:
        boxes: (M, 4) float32 xyxy, pixels.
        scores: (M,) float32.
        classes: (M,) int64, index into the manifest's ``classes``.
    """

    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    def to_coco(self, file_name: str, names: Sequence[str], **place: int) -> list[dict[str, Any]]:
        """COCO results: bbox is (x, y, w, h) in pixels; ``file_name`` (and ``place``) stand for the image id."""
        return [
            {
                "file_name": file_name,
                **place,
                "category_id": label,
                "category": names[label] if label < len(names) else str(label),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "score": score,
            }
            for (x0, y0, x1, y1), score, label in zip(*(field.tolist() for field in self))
        ]


def crop_to_image(maps: np.ndarray, image_hw: tuple[int, int], stride: int) -> np.ndarray:
    """(..., Hf, Wf) without the rows and columns of cells that the image does not reach into."""
    rows, columns = (-(-side // stride) for side in image_hw)
    return maps[..., :rows, :columns]


def keep_pooled_peaks(heat: np.ndarray, pooled: np.ndarray) -> np.ndarray:
    """The form "heads" to "peaks": zero every cell that is not the largest of its neighbourhood.

    Args:
        heat: (K, Hf, Wf) of the image, its padding cut off.
        pooled: (K, >= Hf, >= Wf); where it is larger, what padding added to the last row and column is undone.
    """
    height, width = heat.shape[1:]
    maximum = pooled[:, :height, :width]
    if pooled.shape[1:] != heat.shape[1:]:
        maximum = maximum.copy()
        maximum[:, -1:] = _pool(heat[:, -2:])[:, -1:]
        maximum[:, :, -1:] = _pool(heat[:, :, -2:])[:, :, -1:]
    return np.where(heat == maximum, heat, 0)


def _pool(maps: np.ndarray) -> np.ndarray:
    """Largest value of each 3x3 neighbourhood."""
    padded = np.pad(maps, ((0, 0), (1, 1), (1, 1)), constant_values=-np.inf)
    return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2)).max(axis=(3, 4))


def read_peaks(
    heat: np.ndarray,
    offset: np.ndarray | None,
    size: np.ndarray,
    *,
    stride: int,
    min_score: float,
    limit: int,
) -> Detections:
    """The boxes at all cells that score more than ``min_score``, in pixels of the network input, not clipped.

    Equal scores are in the order of class, row and column.

    Args:
        heat: (K, Hf, Wf), zero everywhere but at peaks.
        offset: (2, Hf, Wf) cells; None puts centres in the middle of their cells.
        size: (2, Hf, Wf), or per class (2 K, Hf, Wf), cells.
        stride: pixels per cell.
        min_score: see above; cells of score 0 are never read.
        limit: keep at most so many, the best.
    """
    flat = heat.reshape(-1)
    cells = np.flatnonzero(flat > max(min_score, 0.0))
    scores = flat[cells].astype(np.float32)
    if 0 < limit < len(cells):  # sort only the best and their equals: an untrained net has a peak in every ninth cell
        worst = np.partition(scores, len(scores) - limit)[len(scores) - limit]
        cells, scores = cells[scores >= worst], scores[scores >= worst]
    best = np.argsort(-scores, kind="stable")[:limit]
    scores = scores[best]
    classes, row, column = np.unravel_index(cells[best], heat.shape)
    centre = np.stack([column, row], axis=1).astype(np.float32)
    centre += 0.5 if offset is None else offset[:, row, column].T
    first = 2 * classes if len(size) > 2 else np.zeros_like(classes)
    half = np.stack([size[first, row, column], size[first + 1, row, column]], axis=1) / 2
    boxes = np.concatenate([centre - half, centre + half], axis=1) * stride
    return Detections(boxes.astype(np.float32), scores, classes.astype(np.int64))
