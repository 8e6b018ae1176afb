"""Matching and losses of one set of predictions after another, as the released program does them."""

from collections.abc import Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import generalized_box_iou, sigmoid_focal_loss

from plain_detr.box_coder import cxcywh_to_xyxy
from plain_detr.criterion import SetCriterion
from plain_detr.hybrid import MatchTask
from plain_detr.matcher import HungarianMatcher
from plain_detr.predictions import BoxSetPrediction, SetTargets

Pairs = list[tuple[Tensor, Tensor]]


class PerLayerCriterion:
    """``SetCriterion`` with the same settings, and per set of predictions: costs of every query of the batch with every
    (repeated) box of the batch, a transfer to the CPU, an assignment an image, and losses from all pairs of boxes.

    Args:
        criterion: ours. Its released fault, unlabelled classes and invalid queries are not known here.
    """

    def __init__(self, criterion: SetCriterion):
        self.criterion = criterion

    def __call__(
        self, tasks: Sequence[MatchTask], targets: SetTargets, *, with_errors: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """As ``SetCriterion.__call__``; no error rates."""
        losses: dict[str, Tensor] = {}
        for task in tasks:
            boxes, classes = repeated(targets, task)
            pairs = match(self.criterion.matcher, task.prediction, boxes, classes)
            number = max(sum(len(one) for one in boxes), 1)
            values = self._score(task.prediction, boxes, classes, pairs)
            for name, value, weight in zip(("class", "box", "giou"), values, self.criterion.weights):
                losses[f"loss_{name}{task.suffix}"] = value / number * weight * task.weight
        return losses, {}

    def _score(
        self, prediction: BoxSetPrediction, boxes: list[Tensor], classes: list[Tensor], pairs: Pairs
    ) -> tuple[Tensor, Tensor, Tensor]:
        image = torch.cat([torch.full_like(query, i) for i, (query, _) in enumerate(pairs)])
        query = torch.cat([query for query, _ in pairs])
        gt_boxes = torch.cat([one[target] for one, (_, target) in zip(boxes, pairs)])
        gt_classes = torch.cat([one[target] for one, (_, target) in zip(classes, pairs)])
        count, width = prediction.logits.shape[1:]
        nothing = torch.full((len(boxes), count), width, dtype=torch.int64)
        nothing[image, query] = gt_classes
        one_hot = torch.zeros(len(boxes), count, width + 1).scatter_(2, nothing[..., None], 1)[..., :-1]
        focal = sigmoid_focal_loss(prediction.logits, one_hot, alpha=self.criterion.alpha, gamma=self.criterion.gamma)
        found, raw, reference = (
            part[image, query] for part in (prediction.boxes, prediction.raw, prediction.reference)
        )
        ours, theirs = self.criterion.coder.l1_operands(found, raw, reference, gt_boxes)
        giou = generalized_box_iou(cxcywh_to_xyxy(found), cxcywh_to_xyxy(gt_boxes)).diagonal()
        return focal.sum(), (ours - theirs).abs().sum(), (1 - giou).sum()


def repeated(targets: SetTargets, task: MatchTask) -> tuple[list[Tensor], list[Tensor]]:
    """Boxes and classes of each image as a task's group sees them."""
    boxes = [one.repeat(task.repeats, 1) for one in targets.boxes.split(targets.counts)]
    classes = [one.repeat(task.repeats) for one in targets.classes.split(targets.counts)]
    return boxes, [torch.zeros_like(one) for one in classes] if task.class_agnostic else classes


@torch.no_grad()
def match(matcher: HungarianMatcher, prediction: BoxSetPrediction, boxes: list[Tensor], classes: list[Tensor]) -> Pairs:
    """(query, target) indices of each image; targets count within their image."""
    batch, count = prediction.logits.shape[:2]
    gt_boxes, gt_classes = torch.cat(boxes), torch.cat(classes)
    probability = prediction.logits.flatten(0, 1).sigmoid()
    found, raw, reference = (
        part.flatten(0, 1)[:, None] for part in (prediction.boxes, prediction.raw, prediction.reference)
    )
    alpha, gamma = matcher.alpha, matcher.gamma
    negative = (1 - alpha) * probability**gamma * -(1 - probability + 1e-8).log()
    positive = alpha * (1 - probability) ** gamma * -(probability + 1e-8).log()
    cost = matcher.cost.classification * (positive[:, gt_classes] - negative[:, gt_classes])
    ours, theirs = matcher.coder.l1_operands(found, raw, reference, gt_boxes[None])
    cost = cost + matcher.cost.box * (ours - theirs).abs().sum(-1)
    corners = cxcywh_to_xyxy(prediction.boxes.flatten(0, 1)), cxcywh_to_xyxy(gt_boxes)
    cost = cost - matcher.cost.giou * generalized_box_iou(*corners)
    cost = cost.view(batch, count, -1).cpu()
    pairs = []
    for image, block in enumerate(cost.split([len(one) for one in boxes], dim=-1)):
        query, target = linear_sum_assignment(block[image])
        pairs.append((torch.as_tensor(query), torch.as_tensor(target)))
    return pairs
