"""Size and offset losses (CenterNet, arXiv:1904.07850, eq. 3 and 2), and the weighted losses of a batch."""

import torch
from torch import Tensor
from torchvision.ops import generalized_box_iou_loss

from centerx.heatmap_losses import classes_with_objects, heatmap_focal_loss, heatmap_mse_loss, quality_focal_loss
from centerx.predictions import CenterPredictions, CenterTargets
from d2x.engine.losses.normalizer import shared_normalizer
from d2x.errors import require_choice

HEATMAP_LOSSES = ("focal", "quality_focal", "mse")
SIZE_LOSSES = ("l1", "giou")
SMALLEST_SHARE = 0.1  # of an object's size, in the giou loss
SIZE_NORMS = ("none", "object", "image_sum")
UNLABELLED = ("labelled_classes", "empty_heatmap", "none")


def gather_cells(feature: Tensor, cell: Tensor, classes: Tensor | None = None) -> Tensor:
    """Read a map at cells.

    Args:
        feature: (N, 2, Hf, Wf), or (N, 2 K, Hf, Wf) with ``classes``.
        cell: (N, D) int64, row-major.
        classes: (N, D) int64, whose pair of channels to read; ignored for a map of 2 channels.

    Returns:
        (N, D, 2)
    """
    flat = feature.flatten(2)
    if classes is not None and flat.shape[1] > 2:
        channel = 2 * classes[..., None] + torch.arange(2, device=classes.device)  # (N, D, 2)
        index = channel * flat.shape[2] + cell[..., None]
        return flat.flatten(1).gather(1, index.flatten(1)).view(*index.shape)
    return flat.gather(2, cell[:, None].expand(-1, 2, -1)).transpose(1, 2)


def l1_at_centres(predicted: Tensor, target: Tensor, valid: Tensor, *, norm: str = "none") -> Tensor:
    """Mean absolute error over the objects and both coordinates.

    Args:
        predicted, target: (N, D, 2).
        valid: (N, D) or, per coordinate, (N, D, 2); bool or 0/1.
        norm: what an error is divided by: "none"; "object": the mean of that object's target width and height;
            "image_sum": half the sum of the image's target widths (heights, for a height), which is what the released
            code's size normalisation computes.
    """
    weight = (valid if valid.dim() == 3 else valid[..., None].expand_as(target)).to(target.dtype)
    error = (predicted.float() - target).abs() * weight
    if norm == "object":
        error = error / (target.sum(dim=2, keepdim=True) / 2 + 1e-4)
    elif norm == "image_sum":
        error = error / (target.sum(dim=1, keepdim=True) / 2 + 1e-4)
    return error.sum() / shared_normalizer(weight.sum(), epsilon=1e-4)


def giou_at_centres(size: Tensor, offset: Tensor, targets: CenterTargets) -> Tensor:
    """Mean generalised-IoU loss (arXiv:1902.09630) of the boxes at the objects' cells.

    Args:
        size, offset: (N, D, 2) predictions at the objects' cells, in cells. Sizes below a tenth of the object's count
            as that tenth and keep their gradient: a box of no size has none, and would stay as it is for ever.
    """
    size = size.float()
    size = size + (size.maximum(SMALLEST_SHARE * targets.size) - size).detach()

    def corners(centre: Tensor, extent: Tensor) -> Tensor:
        half = extent[targets.valid] / 2
        return torch.cat([centre[targets.valid] - half, centre[targets.valid] + half], dim=-1)

    predicted = corners(offset.float(), size)
    wanted = corners(targets.offset, targets.size)
    total = generalized_box_iou_loss(predicted, wanted, reduction="sum")
    return total / shared_normalizer(targets.valid.sum(), least=1)


class CenterLoss:
    """The weighted losses of a batch.

    Args:
        heatmap: "focal", "quality_focal" or "mse".
        size: "l1" or "giou".
        size_norm: see ``l1_at_centres``; for the "l1" size loss.
        unlabelled: which classes of an image get no heatmap loss: "labelled_classes" trusts ``targets.labelled``;
            "empty_heatmap" takes every class without an object for unlabelled; "none" masks nothing.
        heatmap_weight, size_weight, offset_weight: factors of the three terms.
        min_probability: see ``heatmap_focal_loss``.

    Raises:
        ValueError: an option is not one of those listed.
    """

    def __init__(
        self,
        *,
        heatmap: str = "focal",
        size: str = "l1",
        size_norm: str = "none",
        unlabelled: str = "labelled_classes",
        heatmap_weight: float = 1.0,
        size_weight: float = 0.1,
        offset_weight: float = 1.0,
        min_probability: float = 0.0,
    ):
        for key, value, allowed in (
            ("HEATMAP", heatmap, HEATMAP_LOSSES),
            ("SIZE", size, SIZE_LOSSES),
            ("SIZE_NORM", size_norm, SIZE_NORMS),
            ("UNLABELLED", unlabelled, UNLABELLED),
        ):
            require_choice(f"MODEL.CENTERNET.LOSS.{key}", value, allowed)
        self.heatmap, self.size, self.size_norm, self.unlabelled = heatmap, size, size_norm, unlabelled
        self.heatmap_weight, self.size_weight, self.offset_weight = heatmap_weight, size_weight, offset_weight
        self.min_probability = min_probability

    def __call__(self, predictions: CenterPredictions, targets: CenterTargets) -> dict[str, Tensor]:
        """Returns ``loss_cls`` (heatmap), ``loss_box_wh`` (size) and ``loss_off_reg`` (offset), weighted scalars."""
        size = gather_cells(predictions.size, targets.cell, targets.classes)
        losses = {"loss_cls": self.heatmap_weight * self._heatmap_loss(predictions.heatmap_logits, targets)}
        offset = None if predictions.offset is None else gather_cells(predictions.offset, targets.cell)
        if self.size == "giou":
            box_offset = torch.full_like(size, 0.5) if offset is None else offset
            losses["loss_box_wh"] = self.size_weight * giou_at_centres(size, box_offset, targets)
        else:
            l1 = l1_at_centres(size, targets.size, targets.valid, norm=self.size_norm)
            losses["loss_box_wh"] = self.size_weight * l1
        if offset is not None:
            losses["loss_off_reg"] = self.offset_weight * l1_at_centres(offset, targets.offset, targets.valid)
        return losses

    def _heatmap_loss(self, logits: Tensor, targets: CenterTargets) -> Tensor:
        mask = targets.labelled if self.unlabelled == "labelled_classes" else None
        if self.unlabelled == "empty_heatmap":
            mask = classes_with_objects(targets.heatmap)
        if self.heatmap == "mse":
            return heatmap_mse_loss(logits, targets.heatmap, mask)
        if self.heatmap == "quality_focal":
            return quality_focal_loss(logits, targets.heatmap, mask)
        return heatmap_focal_loss(logits, targets.heatmap, mask, min_probability=self.min_probability)
