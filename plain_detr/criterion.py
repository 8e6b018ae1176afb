"""The training loss: match and score every decoder layer, the proposals, and both query groups."""

from collections.abc import Sequence

import torch
from torch import Tensor

from d2x.engine.losses.normalizer import shared_normalizer
from plain_detr.box_coder import BoxCoder
from plain_detr.hybrid import MatchTask
from plain_detr.matcher import HungarianMatcher
from plain_detr.predictions import BoxSetPrediction, Matches, SetTargets
from plain_detr.set_losses import LossWeights, box_losses, class_loss, error_rates


class SetCriterion:
    """Losses of any number of sets of predictions.

    Every part is a sum divided by the number of boxes: repeated as the set's group repeats them, averaged over
    processes, and at least 1 in all.

    Args:
        matcher: finds the pairs.
        coder: the space of boxes.
        weights: of the parts.
        alpha, gamma: of the focal loss.
    """

    def __init__(
        self,
        *,
        matcher: HungarianMatcher,
        coder: BoxCoder,
        weights: LossWeights | None = None,
        alpha: float = 0.25,
        gamma: float = 2.0,
    ):
        self.matcher, self.coder, self.weights = matcher, coder, weights or LossWeights()
        self.alpha, self.gamma = alpha, gamma

    def __call__(
        self, tasks: Sequence[MatchTask], targets: SetTargets, *, with_errors: bool = False
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Score.

        Returns:
            losses: weighted scalars ``loss_class``, ``loss_box`` and ``loss_giou`` with each task's suffix.
            errors: ``class_error``, ``box_error`` and ``cardinality_error`` of the last decoder layer's one-to-one
                group, for the log; empty unless asked for.
        """
        with torch.autocast(targets.boxes.device.type, enabled=False):
            tasks = [task._replace(prediction=_float(task.prediction)) for task in tasks]
            matches = self.matcher(tasks, targets)
            boxes = targets.boxes.new_tensor(len(targets.boxes))
            normalizers = {
                repeats: shared_normalizer(boxes * repeats, least=1.0)
                for repeats in sorted({task.repeats for task in tasks})  # in the same order in every process
            }
            losses: dict[str, Tensor] = {}
            errors: dict[str, float] = {}
            for task, pairs in zip(tasks, matches):
                mine = targets.with_classes_merged() if task.class_agnostic else targets
                parts = self._score(task.prediction, mine, pairs)
                for (name, weight), value in zip(self.weights._asdict().items(), parts):
                    name = "class" if name == "classification" else name
                    losses[f"loss_{name}{task.suffix}"] = value * (weight * task.weight) / normalizers[task.repeats]
            last = [
                (task, pairs) for task, pairs in zip(tasks, matches) if task.repeats == 1 and not task.class_agnostic
            ]
            if last and with_errors:
                errors = error_rates(last[-1][0].prediction, targets, last[-1][1])
        return losses, errors

    def _score(
        self, prediction: BoxSetPrediction, targets: SetTargets, matches: Matches
    ) -> tuple[Tensor, Tensor, Tensor]:
        classification = class_loss(prediction, targets, matches, alpha=self.alpha, gamma=self.gamma)
        return classification, *box_losses(prediction, targets, matches, coder=self.coder)


def _float(prediction: BoxSetPrediction) -> BoxSetPrediction:
    logits, boxes, raw, reference = (part.float() for part in prediction[:4])
    return BoxSetPrediction(logits, boxes, raw, reference, prediction.valid)
