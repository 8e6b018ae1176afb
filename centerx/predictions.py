"""Predictions and targets of the head: shape and unit of each map, written once.

Shape shorthand of this package: N images, K classes, D boxes of the fullest image, (Hf, Wf) cells of the feature grid.
A cell covers ``stride`` x ``stride`` pixels of the padded network input; sizes and offsets count cells.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor


class CenterPredictions(NamedTuple):
    """Output of the head.

    heatmap_logits: (N, K, Hf, Wf), before the sigmoid; one independent binary classifier per class.
    size: (N, 2, Hf, Wf) as (width, height), or (N, 2 K, Hf, Wf) as (w0, h0, w1, h1, ...) when sizes are per class.
    offset: (N, 2, Hf, Wf) as (dx, dy) from the cell's corner; None without an offset branch.
    """

    heatmap_logits: Tensor
    size: Tensor
    offset: Tensor | None

    def each(self, change: Callable[[Tensor], Tensor]) -> "CenterPredictions":
        """``change`` applied to every map that is there."""
        offset = None if self.offset is None else change(self.offset)
        return CenterPredictions(change(self.heatmap_logits), change(self.size), offset)


@dataclass(frozen=True)
class SparseHeatmap:
    """A target heatmap by its cells that are not 0, a few hundred of an image's million.

    index: (T,) int64, ascending and each once, into the flattened (N, K, Hf, Wf).
    value: (T,) float32 in (0, 1].
    shape: (N, K, Hf, Wf).
    """

    index: Tensor
    value: Tensor
    shape: tuple[int, int, int, int]

    @property
    def map_index(self) -> Tensor:
        """(T,) int64: which of the N * K maps each cell is of."""
        return self.index // (self.shape[2] * self.shape[3])

    def dense(self) -> Tensor:
        """(N, K, Hf, Wf) float32."""
        heatmap = torch.zeros(self.shape, device=self.value.device)
        heatmap.view(-1)[self.index] = self.value
        return heatmap

    @classmethod
    def of(cls, heatmap: Tensor) -> "SparseHeatmap":
        """From (N, K, Hf, Wf)."""
        flat = heatmap.flatten()
        index = flat.nonzero()[:, 0]
        images, classes, height, width = heatmap.shape
        return cls(index, flat[index], (images, classes, height, width))


class CenterTargets(NamedTuple):
    """Ground truth of a batch; rows past an image's own boxes are zero and not ``valid``.

    heatmap: of (N, K, Hf, Wf), exactly 1 at the cell of each object's centre.
    cell: (N, D) int64, row-major index ``y * Wf + x``.
    size: (N, D, 2) as (width, height).
    offset: (N, D, 2) as (dx, dy).
    classes: (N, D) int64.
    valid: (N, D) bool.
    labelled: (N, K) bool, False for classes that the image is not labelled for.
    """

    heatmap: SparseHeatmap
    cell: Tensor
    size: Tensor
    offset: Tensor
    classes: Tensor
    valid: Tensor
    labelled: Tensor
