"""Hungarian matching of predictions and boxes (Carion et al., DETR, eq. 1), many sets of predictions at once."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from plain_detr.box_coder import BoxCoder
from plain_detr.hybrid import MatchTask
from plain_detr.predictions import BoxSetPrediction, Matches, SetTargets
from plain_detr.set_losses import generalized_iou

# Cost of a pair that must not be. Larger than any real cost, small enough to leave double precision to the others.
FORBIDDEN = 1e6


class CostWeights(NamedTuple):
    """Weights of the parts of the matching cost; the box part is L1 in the coder's terms."""

    classification: float = 2.0
    box: float = 5.0
    giou: float = 2.0


class HungarianMatcher:
    """Finds, for every set of predictions, the cheapest one-to-one assignment in each image.

    Costs are computed on the device, sent to the CPU in one piece, solved there, and the pairs are sent back in one
    piece.

    Args:
        coder: the space of boxes.
        cost: weights.
        alpha, gamma: of the focal cost.
        released_pairing: reproduce a fault of the released code: with the delta coder, when the batch has as many
            predictions as boxes, box t is encoded against prediction t instead of against each prediction.
    """

    def __init__(
        self,
        *,
        coder: BoxCoder,
        cost: CostWeights | None = None,
        alpha: float = 0.25,
        gamma: float = 2.0,
        released_pairing: bool = False,
    ):
        self.coder, self.cost, self.alpha, self.gamma = coder, cost or CostWeights(), alpha, gamma
        self.released_pairing = released_pairing

    @torch.no_grad()
    def cost_matrix(self, prediction: BoxSetPrediction, targets: SetTargets) -> Tensor:
        """(T, Q) float32: what it costs to give box t to each query of its own image."""
        # Each box sees the queries of its image only, so there are no costs across images to throw away.
        logits, boxes, raw, reference = (part[targets.image].float() for part in prediction[:4])  # (T, Q, ...)
        index = targets.classes[:, None, None].expand(-1, logits.shape[1], 1)
        probability = logits.gather(2, index).squeeze(2).sigmoid()
        positive = self.alpha * (1 - probability) ** self.gamma * -(probability + 1e-8).log()
        negative = (1 - self.alpha) * probability**self.gamma * -(1 - probability + 1e-8).log()
        gt_boxes = targets.boxes[:, None]
        if self.released_pairing and len(targets.boxes) == prediction.boxes[..., 0].numel():
            reference = prediction.reference.flatten(0, 1)[:, None]  # of prediction t, for box t
        ours, theirs = self.coder.l1_operands(boxes, raw, reference, gt_boxes)
        cost = self.cost.classification * (positive - negative)
        cost = cost + self.cost.box * (ours - theirs).abs().sum(-1)
        cost = cost - self.cost.giou * generalized_iou(boxes, gt_boxes)
        if prediction.valid is not None:
            cost = cost.masked_fill(~prediction.valid[targets.image], FORBIDDEN)
        # A diverged network must show up as a loss that is not finite, not as an error of the solver.
        return torch.nan_to_num(cost, nan=FORBIDDEN, posinf=FORBIDDEN, neginf=-FORBIDDEN)

    @torch.no_grad()
    def __call__(self, tasks: Sequence[MatchTask], targets: SetTargets) -> list[Matches]:
        """Match every task.

        Returns:
            One ``Matches`` a task. In each image min(Q, repeats * boxes) pairs, fewer where queries are not valid;
            every box appears at most ``repeats`` times, every query at most once.
        """
        merged = targets.with_classes_merged() if any(task.class_agnostic for task in tasks) else None
        costs = []
        for task in tasks:
            mine = merged if task.class_agnostic else targets
            if self.released_pairing and task.repeats > 1:
                # Only the released fault looks at the repeated list; everybody else tiles the finished costs.
                costs.append(self.cost_matrix(task.prediction, _tile(mine, task.repeats)))
            else:
                costs.append(self.cost_matrix(task.prediction, mine))
        if not costs:
            return []
        on_cpu = torch.cat([cost.flatten() for cost in costs]).cpu().numpy()
        found, start = [], 0
        for task, cost in zip(tasks, costs):
            matrix = on_cpu[start : start + cost.numel()].reshape(cost.shape)
            start += cost.numel()
            found.append(_solve(matrix, targets.counts, task.repeats))
        return _to_device(found, targets.boxes.device)


def _tile(targets: SetTargets, repeats: int) -> SetTargets:
    """Each image's list of boxes, ``repeats`` times over."""
    boxes = [one.repeat(repeats, 1) for one in targets.boxes.split(targets.counts)]
    classes = [one.repeat(repeats) for one in targets.classes.split(targets.counts)]
    return SetTargets.pack(boxes, classes, targets.labelled)


def _solve(cost: np.ndarray, counts: Sequence[int], repeats: int) -> np.ndarray:
    """(T or repeats * T, Q) costs -> (3, P) int64 image, query and packed target of every pair."""
    times = cost.shape[0] // max(1, sum(counts))  # > 1 when the costs are repeated already
    pairs, row, first = [], 0, 0
    for image, count in enumerate(counts):
        block = cost[row : row + count * times]
        tiled = np.tile(block, (repeats // times, 1)) if count else block
        target, query = linear_sum_assignment(tiled)
        allowed = tiled[target, query] < FORBIDDEN / 2
        target, query = target[allowed], query[allowed]
        pairs.append(np.stack([np.full_like(query, image), query, first + target % max(count, 1)]))
        row, first = row + count * times, first + count
    return np.concatenate(pairs, axis=1) if pairs else np.zeros((3, 0), dtype=np.int64)


def _to_device(found: list[np.ndarray], device: torch.device) -> list[Matches]:
    packed = torch.from_numpy(np.concatenate(found, axis=1).astype(np.int64)).to(device)
    return [Matches(*part) for part in packed.split([one.shape[1] for one in found], dim=1)]
