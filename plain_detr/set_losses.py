"""Focal, L1 and GIoU on matched pairs, and error rates for the log. All float32."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou

from plain_detr.box_coder import BoxCoder, cxcywh_to_xyxy
from plain_detr.predictions import BoxSetPrediction, Matches, SetTargets


class LossWeights(NamedTuple):
    """Weights of the parts of the loss, or of the matching cost; the box part is L1 in the coder's terms."""

    classification: float = 2.0
    box: float = 5.0
    giou: float = 2.0


def generalized_iou(boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """GIoU of boxes with broadcast (Rezatofighi et al., CVPR 2019).

    torchvision has the all-pairs form only, and its pairwise loss indexes by a mask, which waits for the device.

    Args:
        boxes, gt_boxes: (..., 4) (cx, cy, w, h), any one unit, sizes not negative.

    Returns:
        (...,) in [-1, 1]; 0 where both boxes are the same point.
    """
    low, high = cxcywh_to_xyxy(boxes).split(2, dim=-1)
    gt_low, gt_high = cxcywh_to_xyxy(gt_boxes).split(2, dim=-1)
    inner = (torch.minimum(high, gt_high) - torch.maximum(low, gt_low)).clamp(min=0).prod(-1)
    outer = (torch.maximum(high, gt_high) - torch.minimum(low, gt_low)).prod(-1)
    union = (high - low).prod(-1) + (gt_high - gt_low).prod(-1) - inner
    tiny = torch.finfo(union.dtype).tiny
    return inner / union.clamp(min=tiny) - (outer - union) / outer.clamp(min=tiny)


def class_loss(
    prediction: BoxSetPrediction, targets: SetTargets, matches: Matches, *, alpha: float, gamma: float
) -> Tensor:
    """Sigmoid focal loss summed over images, queries and classes; unmatched queries are negatives of every class.

    Queries with ``valid`` False, and classes an image is not labelled for, are left out. An ``alpha`` below 0 weighs
    both sides alike.
    """
    logits, (image, query, target) = prediction.logits, matches
    for_positive, for_negative = (alpha, 1 - alpha) if alpha >= 0 else (1.0, 1.0)
    negative = for_negative * logits.sigmoid() ** gamma * F.softplus(logits)
    if prediction.valid is not None:
        negative = negative * prediction.valid[..., None]
    if targets.labelled is not None:
        negative = negative * targets.labelled[:, None]
    # Nearly all are negatives: count all of them as such, and put the few matched ones right.
    index = image, query, targets.classes[target]
    matched = logits[index]
    positive = for_positive * (1 - matched.sigmoid()) ** gamma * F.softplus(-matched)
    if prediction.valid is not None:
        positive = positive * prediction.valid[image, query]
    if targets.labelled is not None:
        positive = positive * targets.labelled[image, index[2]]
    return negative.sum() + (positive - negative[index]).sum()


def box_losses(
    prediction: BoxSetPrediction, targets: SetTargets, matches: Matches, *, coder: BoxCoder
) -> tuple[Tensor, Tensor]:
    """L1 (in the coder's terms) and 1 - GIoU, each summed over the matched pairs; exactly 0 without any."""
    boxes, raw, reference = (
        part[matches.image, matches.query] for part in (prediction.boxes, prediction.raw, prediction.reference)
    )
    gt_boxes = targets.boxes[matches.target]
    ours, theirs = coder.l1_operands(boxes, raw, reference, gt_boxes)
    return (ours - theirs).abs().sum(), (1 - generalized_iou(boxes, gt_boxes)).sum()


@torch.no_grad()
def error_rates(prediction: BoxSetPrediction, targets: SetTargets, matches: Matches) -> dict[str, float]:
    """What the matched queries get wrong, for the log.

    Returns:
        class_error: per cent of matched queries whose best class is another; 100 without any.
        box_error: 100 * (1 - mean IoU) of the matched queries; 100 without any.
        cardinality_error: difference between queries that score above one half and boxes, mean over images.
    """
    logits = prediction.logits[matches.image, matches.query]
    right = logits.argmax(-1) == targets.classes[matches.target]
    boxes = cxcywh_to_xyxy(prediction.boxes[matches.image, matches.query])
    iou = box_iou(boxes, cxcywh_to_xyxy(targets.boxes[matches.target])).diagonal()
    counts = torch.tensor(targets.counts, device=logits.device)
    confident = (prediction.logits.amax(-1) > 0).sum(1)
    rates = [100 - 100 * right.float().mean(), 100 - 100 * iou.mean()] if len(right) else [torch.tensor(100.0)] * 2
    rates.append((confident - counts).abs().float().mean())
    return dict(zip(("class_error", "box_error", "cardinality_error"), torch.stack([r.cpu() for r in rates]).tolist()))
