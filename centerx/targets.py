"""Training targets from boxes, for a whole batch at once and on its device."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from centerx.gaussian import draw_gaussians, gaussian_radius
from centerx.predictions import CenterTargets, SparseHeatmap


def locate_centres(boxes: Tensor, stride: int, grid_hw: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Find the heatmap cell that owns each box centre, and where in that cell it lies.

    A centre at pixel (cx, cy) belongs to cell (floor(cx / stride), floor(cy / stride)); what the floor throws away is
    what the offset head learns (CenterNet, arXiv:1904.07850, eq. 2).

    Args:
        boxes: (..., 4) xyxy, pixels of the padded network input.
        stride: input pixels per heatmap cell.
        grid_hw: heatmap size as (Hf, Wf), in cells.

    Returns:
        owner: (..., 2) int64 as (column, row). A centre on or past the border is given to the nearest cell.
        offset: (..., 2) as (dx, dy) in cells, within [0, 1) for a centre inside the map.
    """
    height, width = grid_hw
    centre = (boxes[..., :2] + boxes[..., 2:]) / (2 * stride)
    last = centre.new_tensor([width - 1, height - 1])
    owner = torch.minimum(centre.floor().clamp(min=0), last)
    return owner.long(), centre - owner


def make_targets(
    boxes: Sequence[Tensor],
    classes: Sequence[Tensor],
    *,
    num_classes: int,
    stride: int,
    grid_hw: tuple[int, int],
    min_overlap: float,
    max_boxes: int = 0,
    labelled_classes: Sequence[Tensor | None] | None = None,
) -> CenterTargets:
    """Build the targets of a batch. The inputs are not changed.

    Two objects in one cell stay two rows. A box without area is legal: a single 1 in the heatmap.

    Args:
        boxes: per image (M, 4) xyxy, pixels of the padded network input; M may be 0.
        classes: per image (M,) int64 in [0, K).
        num_classes: K.
        stride: input pixels per cell.
        grid_hw: (Hf, Wf) of the padded batch, in cells.
        min_overlap: IoU that fixes the radius of the bumps, see ``gaussian_radius``.
        max_boxes: keep only the first boxes of an image, the rest becomes background; 0 keeps all.
        labelled_classes: per image the classes it is labelled for, (L,) int64; None means all.
    """
    if max_boxes:
        boxes, classes = [b[:max_boxes] for b in boxes], [c[:max_boxes] for c in classes]
    num_images, (height, width) = len(boxes), grid_hw
    device = boxes[0].device
    counts = torch.tensor([len(b) for b in boxes], device=device)
    padded = pad_sequence(list(boxes), batch_first=True).float()  # (N, D, 4)
    kinds = pad_sequence(list(classes), batch_first=True)  # (N, D)
    valid = torch.arange(padded.shape[1], device=device) < counts[:, None]

    owner, offset = locate_centres(padded, stride, grid_hw)
    size = (padded[..., 2:] - padded[..., :2]) / stride
    radius = gaussian_radius(size, min_overlap).clamp(min=0).long()
    image = torch.arange(num_images, device=device)[:, None].expand_as(kinds)
    x, y = owner.unbind(-1)
    index, value = draw_gaussians(
        (num_images * num_classes, height, width),
        (image * num_classes + kinds)[valid],
        x[valid],
        y[valid],
        radius[valid],
    )
    return CenterTargets(
        heatmap=SparseHeatmap(index, value, (num_images, num_classes, height, width)),
        cell=(y * width + x) * valid,
        size=size * valid[..., None],
        offset=offset * valid[..., None],
        classes=kinds,
        valid=valid,
        labelled=_labelled_mask(labelled_classes, num_images, num_classes, device),
    )


def _labelled_mask(labelled: Sequence[Tensor | None] | None, num_images: int, num_classes: int, device) -> Tensor:
    mask = torch.ones(num_images, num_classes, dtype=torch.bool, device=device)
    for row, known in zip(mask, labelled or ()):
        if known is not None:
            row.zero_()
            row[known.to(device)] = True
    return mask
