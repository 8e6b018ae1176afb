"""The two ways Plain-DETR writes a box, behind one interface.

Proposals, decoder, matcher, losses and decode are handed a coder and never ask which one it is.

``extent`` is, everywhere here, (N, 1, 2) float32: the (width, height) in pixels of each image's valid area.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from plain_detr.padding import FeatureGrid

# A size may change by at most this factor in one step (the R-CNN bound): 1000 / 16.
MAX_LOG_RATIO = abs(math.log(16 / 1000))

# Anchors must lie this far inside the image, as a fraction of its extent.
BORDER = 0.01


def cxcywh_to_xyxy(boxes: Tensor) -> Tensor:
    """(..., 4) (cx, cy, w, h) to corners, in the same unit."""
    centre, half = boxes[..., :2], boxes[..., 2:] / 2
    return torch.cat([centre - half, centre + half], dim=-1)


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """(..., 4) corners to (cx, cy, w, h), in the same unit."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return torch.cat([(low + high) / 2, high - low], dim=-1)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """Logit of x, which is clipped to [0, 1]; x and 1 - x count as at least ``eps``."""
    x = x.clamp(0, 1)
    return torch.log(x.clamp(min=eps) / (1 - x).clamp(min=eps))


def encode_deltas(reference: Tensor, boxes: Tensor, *, margin: float = 0.1) -> Tensor:
    """Deltas (dx, dy, dw, dh) that take ``reference`` to ``boxes``; (..., 4) (cx, cy, w, h), broadcast.

    ``margin`` pixels are added to the reference's size, as in the released code: it keeps the logarithm finite for a
    reference clipped to nothing. ``decode_deltas`` adds none, so a round trip is exact only with ``margin=0``.
    """
    size = reference[..., 2:] + margin
    shift = (boxes[..., :2] - reference[..., :2]) / size
    return torch.cat([shift, torch.log(boxes[..., 2:] / size)], dim=-1)


def decode_deltas(
    reference: Tensor,
    deltas: Tensor,
    extent: Tensor | None = None,
    *,
    max_log_ratio: float = MAX_LOG_RATIO,
    max_shift: float | None = None,
) -> Tensor:
    """Move and scale boxes: centre = p_xy + p_wh * d_xy, size = p_wh * exp(d_wh).

    Args:
        reference: (..., 4) (cx, cy, w, h), pixels.
        deltas: (..., 4) (dx, dy, dw, dh), no unit; dw and dh are clipped to +-``max_log_ratio``.
        extent: (..., 2) (width, height) the corners are clipped to; None does not clip. Gradients are zero where the
            clip acts.
        max_shift: pixels a centre may move; the sizes then have no lower bound (YOLOF's form; no released model).

    Returns:
        (..., 4) (cx, cy, w, h), pixels.
    """
    size = reference[..., 2:]
    shift, log_ratio = size * deltas[..., :2], deltas[..., 2:].clamp(max=max_log_ratio)
    if max_shift is None:
        log_ratio = log_ratio.clamp(min=-max_log_ratio)
    else:
        shift = shift.clamp(-max_shift, max_shift)
    centre, half = reference[..., :2] + shift, size * log_ratio.exp() / 2
    low, high = centre - half, centre + half
    if extent is not None:
        low, high = (torch.minimum(corner.clamp(min=0), extent) for corner in (low, high))
    return torch.cat([(low + high) / 2, high - low], dim=-1)


class BoxCoder:
    """Interface. All boxes are (cx, cy, w, h) in coder space, float32, unless a name says otherwise."""

    anchor_size: float  # side of the anchors of the finest level, in coder space

    def extent(self, grid: FeatureGrid, levels: Sequence[FeatureGrid], device: torch.device) -> Tensor:
        """The ``extent`` that every other call for this batch is given: of the decoder's map, or of the first level."""
        raise NotImplementedError

    def anchors(self, levels: Sequence[FeatureGrid], device: torch.device) -> tuple[Tensor, Tensor]:
        """One square box centred on every cell of every level, twice as large on each next level.

        Returns:
            boxes: (N, S, 4), the levels one after the other, each row by row.
            valid: (N, S) bool: the cell holds image, and all four numbers are within (1 %, 99 %) of the extent.
        """
        raise NotImplementedError

    def _squares(
        self, levels: Sequence[FeatureGrid], centres: list[Tensor], low: Tensor | float, high: Tensor | float
    ) -> tuple[Tensor, Tensor]:
        """``anchors`` from the centres (N, S, 2) of every level and the limits of all four numbers, coder space."""
        boxes, valid = [], []
        for index, (level, centre) in enumerate(zip(levels, centres)):
            box = torch.cat([centre, torch.full_like(centre, self.anchor_size * 2**index)], dim=-1)
            boxes.append(box)
            valid.append(((box > low) & (box < high)).all(-1) & ~level.padding(box.device).flatten(1))
        return torch.cat(boxes, dim=1), torch.cat(valid, dim=1)

    def released_invalid_anchors(self, levels: Sequence[FeatureGrid]) -> float:
        """What the released code writes into all four numbers of an invalid anchor."""
        raise NotImplementedError

    def released_invalid_boxes(self, boxes: Tensor) -> Tensor:
        """What the released code makes of the boxes predicted from invalid anchors."""
        raise NotImplementedError

    def whole_image(self, extent: Tensor) -> Tensor:
        """(N, 1, 4), the box that covers all of each image."""
        raise NotImplementedError

    def decode(self, reference: Tensor, raw: Tensor, extent: Tensor) -> Tensor:
        """Refine ``reference`` (N, Q, 4) by a head's output ``raw`` (N, Q, 4)."""
        raise NotImplementedError

    def from_pixels(self, boxes_cxcywh: Tensor, extent: Tensor) -> Tensor:
        """Into coder space; ``extent`` broadcasts to the boxes."""
        raise NotImplementedError

    def to_pixels(self, boxes: Tensor, extent: Tensor) -> Tensor:
        """Out of coder space: (..., 4) (cx, cy, w, h) in pixels of the network input."""
        raise NotImplementedError

    def l1_operands(self, boxes: Tensor, raw: Tensor, reference: Tensor, gt_boxes: Tensor) -> tuple[Tensor, Tensor]:
        """The two tensors whose absolute difference is the box loss and the box cost; all (..., 4), broadcast."""
        raise NotImplementedError


class SigmoidCoder(BoxCoder):
    """Boxes over the image's own width and height, refined in logit space (Deformable DETR, appendix A.4)."""

    def __init__(self, *, anchor_size: float = 0.05):
        self.anchor_size = anchor_size

    def extent(self, grid, levels, device):
        return grid.extent_wh(device)

    def anchors(self, levels, device):
        centres = [cell_centres(level, device) / level.extent_wh(device).clamp(min=1) for level in levels]
        return self._squares(levels, centres, BORDER, 1 - BORDER)

    def released_invalid_anchors(self, levels):
        return 1.0

    def released_invalid_boxes(self, boxes):
        return torch.ones_like(boxes)

    def whole_image(self, extent):
        return torch.cat([torch.full_like(extent, 0.5), torch.ones_like(extent)], dim=-1)

    def decode(self, reference, raw, extent):
        return torch.sigmoid(raw + inverse_sigmoid(reference))

    def from_pixels(self, boxes_cxcywh, extent):
        return boxes_cxcywh / torch.cat([extent, extent], dim=-1)

    def to_pixels(self, boxes, extent):
        return boxes * torch.cat([extent, extent], dim=-1)

    def l1_operands(self, boxes, raw, reference, gt_boxes):
        return boxes, gt_boxes


class DeltaCoder(BoxCoder):
    """Boxes in pixels, refined by R-CNN's deltas and clipped to the image: the paper's re-parameterisation.

    The L1 loss compares deltas, so a small box counts as much as a large one.
    """

    def __init__(self, *, anchor_size: float = 50.0):
        self.anchor_size = anchor_size

    def extent(self, grid, levels, device):
        return levels[0].extent_wh(device)

    def anchors(self, levels, device):
        extent = levels[0].extent_wh(device).repeat(1, 1, 2)  # (N, 1, 4)
        centres = [cell_centres(level, device).expand(extent.shape[0], -1, -1) for level in levels]
        return self._squares(levels, centres, BORDER * extent, (1 - BORDER) * extent)

    def released_invalid_anchors(self, levels):
        return float(max(levels[0].hw) * levels[0].stride)

    def released_invalid_boxes(self, boxes):
        return boxes

    def whole_image(self, extent):
        return torch.cat([extent / 2, extent], dim=-1)

    def decode(self, reference, raw, extent):
        return decode_deltas(reference, raw, extent)

    def from_pixels(self, boxes_cxcywh, extent):
        return boxes_cxcywh

    def to_pixels(self, boxes, extent):
        return boxes

    def l1_operands(self, boxes, raw, reference, gt_boxes):
        return raw, encode_deltas(reference, gt_boxes)


def cell_centres(grid: FeatureGrid, device: torch.device) -> Tensor:
    """(1, Hf * Wf, 2) float32 (x, y) in pixels, row by row."""
    height, width = grid.hw
    y = (torch.arange(height, dtype=torch.float32, device=device) + 0.5) * grid.stride
    x = (torch.arange(width, dtype=torch.float32, device=device) + 0.5) * grid.stride
    return torch.stack([x.expand(height, width), y[:, None].expand(height, width)], dim=-1).view(1, -1, 2)


BOX_CODERS = {"sigmoid": SigmoidCoder, "delta": DeltaCoder}
