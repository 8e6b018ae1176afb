"""What the head emits and what it is trained towards: shape and unit of each map, written once.

Shape shorthand of this package: N images, K classes, D boxes of the fullest image, (Hf, Wf) cells of the feature grid.
A cell covers ``stride`` x ``stride`` pixels of the padded network input; sizes and offsets count cells.
"""

from typing import NamedTuple

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


class CenterTargets(NamedTuple):
    """Ground truth of a batch; rows past an image's own boxes are zero and not ``valid``.

    heatmap: (N, K, Hf, Wf) in [0, 1], exactly 1 at the cell of each object's centre.
    cell: (N, D) int64, row-major index ``y * Wf + x``.
    size: (N, D, 2) as (width, height).
    offset: (N, D, 2) as (dx, dy).
    classes: (N, D) int64.
    valid: (N, D) bool.
    labelled: (N, K) bool, False for classes that the image is not labelled for.
    """

    heatmap: Tensor
    cell: Tensor
    size: Tensor
    offset: Tensor
    classes: Tensor
    valid: Tensor
    labelled: Tensor
