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
from plain_detr.set_losses import LossWeights, generalized_iou

# Cost of a pair that must not be. Larger than any real cost, small enough to leave double precision to the others.
FORBIDDEN = 1e6


class _Pairs(NamedTuple):
    """What every (box, query of its image) pair needs: (T, Q), (T, Q, 4) three times, (T, Q) bool."""

    logits: Tensor
    boxes: Tensor
    raw: Tensor
    reference: Tensor
    valid: Tensor


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
        cost: LossWeights | None = None,
        alpha: float = 0.25,
        gamma: float = 2.0,
        released_pairing: bool = False,
    ):
        self.coder, self.cost, self.alpha, self.gamma = coder, cost or LossWeights(), alpha, gamma
        self.released_pairing = released_pairing

    @torch.no_grad()
    def cost_matrix(self, prediction: BoxSetPrediction, targets: SetTargets) -> Tensor:
        """(T, Q) float32: what it costs to give box t to each query of its own image."""
        misread = self._misread(prediction, len(targets.boxes))
        return self._cost(self._pairs(prediction, targets, misread), targets)

    def _misread(self, prediction: BoxSetPrediction, count: int) -> bool:
        """Whether the released fault strikes this set and so many boxes."""
        return self.released_pairing and count == prediction.boxes[..., 0].numel()

    def _pairs(self, prediction: BoxSetPrediction, targets: SetTargets, misread: bool) -> _Pairs:
        # Each box sees the queries of its image only, so there are no costs across images to throw away.
        image = targets.image
        logits = prediction.logits[image, :, targets.classes].float()
        boxes, raw, reference = (part[image].float() for part in prediction[1:4])
        if misread:
            reference = prediction.reference.flatten(0, 1)[:, None].expand_as(boxes)  # of prediction t, for box t
        valid = torch.ones_like(logits, dtype=torch.bool) if prediction.valid is None else prediction.valid[image]
        return _Pairs(logits, boxes, raw, reference, valid)

    def _cost(self, pairs: _Pairs, targets: SetTargets) -> Tensor:
        probability, gt_boxes = pairs.logits.sigmoid(), targets.boxes[:, None]
        positive = self.alpha * (1 - probability) ** self.gamma * -(probability + 1e-8).log()
        negative = (1 - self.alpha) * probability**self.gamma * -(1 - probability + 1e-8).log()
        ours, theirs = self.coder.l1_operands(pairs.boxes, pairs.raw, pairs.reference, gt_boxes)
        cost = self.cost.classification * (positive - negative)
        cost = cost + self.cost.box * (ours - theirs).abs().sum(-1)
        cost = cost - self.cost.giou * generalized_iou(pairs.boxes, gt_boxes)
        cost = cost.masked_fill(~pairs.valid, FORBIDDEN)
        # A diverged network must show up as a loss that is not finite, not as an error of the solver.
        return torch.nan_to_num(cost, nan=FORBIDDEN, posinf=FORBIDDEN, neginf=-FORBIDDEN)

    @torch.no_grad()
    def __call__(self, tasks: Sequence[MatchTask], targets: SetTargets) -> list[Matches]:
        """Match every task.

        Returns:
            One ``Matches`` a task. In each image min(Q, repeats * boxes) pairs, fewer where queries are not valid;
            every box appears at most ``repeats`` times, every query at most once.
        """
        # Sets with the same boxes share one computation: side by side they are one set with more queries.
        alike: dict[tuple[bool, int], list[int]] = {}
        misread = [self._misread(task.prediction, task.repeats * len(targets.boxes)) for task in tasks]
        for index, task in enumerate(tasks):
            # Only the released fault looks at the repeated list; everybody else tiles the finished costs.
            listed = task.repeats if misread[index] else 1
            alike.setdefault((task.class_agnostic, listed), []).append(index)
        costs: dict[int, Tensor] = {}
        for (class_agnostic, listed), indices in alike.items():
            mine = targets.with_classes_merged() if class_agnostic else targets
            mine = _tile(mine, listed) if listed > 1 else mine
            pairs = [self._pairs(tasks[index].prediction, mine, misread[index]) for index in indices]
            joined = self._cost(_Pairs(*(torch.cat(parts, dim=1) for parts in zip(*pairs))), mine)
            costs |= zip(indices, joined.split([part.logits.shape[1] for part in pairs], dim=1))
        if not costs:
            return []
        ordered = [costs[index] for index in range(len(tasks))]
        on_cpu = torch.cat([cost.flatten() for cost in ordered]).cpu().split([cost.numel() for cost in ordered])
        matrices = (flat.view(cost.shape).numpy() for flat, cost in zip(on_cpu, ordered))
        pairs = [_solve(matrix, targets.counts, task.repeats) for matrix, task in zip(matrices, tasks)]
        packed = torch.from_numpy(np.concatenate(pairs, axis=1).astype(np.int64)).to(targets.boxes.device)
        return [Matches(*part) for part in packed.split([part.shape[1] for part in pairs], dim=1)]


def _tile(targets: SetTargets, repeats: int) -> SetTargets:
    """Each image's list of boxes, ``repeats`` times over."""
    boxes = [of_image.repeat(repeats, 1) for of_image in targets.boxes.split(targets.counts)]
    classes = [of_image.repeat(repeats) for of_image in targets.classes.split(targets.counts)]
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
