"""Adaptive loss: losses re-weighted every iteration so that each is worth a fixed amount, whatever its own scale.

The "communist" loss: weight = target / loss.detach(), so every loss always has the value of its target and
the learning-rate schedule alone decides how fast training goes. It needs no knowledge of the model: losses are chosen
by the names in the model's loss dict.
"""

import fnmatch
import logging
import math
from collections import Counter
from collections.abc import Iterable, Sequence

from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from d2x.engine.losses.loss_guard import connected_zero, mean_over_ranks
from d2x.engine.losses.transform import LossTransform

logger = logging.getLogger(__name__)

# Repeated messages about one loss are logged at these counts only.
REPORT_AT = (1, 10, 100, 1000, 10000)


class AdaptiveLoss(LossTransform):
    """Loss transform for ``TrainStep``: scales each named loss to its target value.

    A loss that is not finite, or nearer to zero than ``min_loss``, has no usable weight: it is left out for this step
    on every rank, counted, and reported in the log. Under DDP the weight is made from the mean of the loss over all
    ranks, so that it is the same on each. Weights are computed in float32, under mixed precision too.

    Args:
        targets: (pattern, value) pairs; of the ``fnmatch`` patterns that match a loss' name the first one counts. A
            loss that none matches is passed on unchanged.
        min_loss: absolute values below it count as zero.
        max_weight: upper limit of the weights' absolute value; 0 for none.
        parameters: the model's trained parameters. Needed under DDP, which must see every one of them in every backward
            pass, also when a loss is left out.

    Raises:
        ValueError: a target is not a positive number, or (at the first call) no pattern matches any loss.
    """

    def __init__(
        self,
        *,
        targets: Sequence[tuple[str, float]],
        min_loss: float = 1e-12,
        max_weight: float = 0.0,
        parameters: Iterable[nn.Parameter] = (),
    ):
        self.targets = [(str(pattern), float(value)) for pattern, value in targets]
        for pattern, value in self.targets:
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"ADAPTIVE_LOSS.TARGETS: the target of '{pattern}' must be positive, got {value}")
        self.min_loss, self.max_weight = min_loss, max_weight
        self.parameters = tuple(parameters)
        self.left_out: Counter[str] = Counter()  # loss name -> steps it was left out
        self.weights: dict[str, float] = {}  # of the last call

    def target_of(self, name: str) -> float | None:
        """The target value of a loss by its name; None if no pattern matches."""
        return next((value for pattern, value in self.targets if fnmatch.fnmatchcase(name, pattern)), None)

    def __call__(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss dict -> loss dict with the same keys; a loss left out becomes a zero without a path to the model."""
        chosen = {name: target for name in losses if (target := self.target_of(name)) is not None}
        if not chosen:
            patterns = ", ".join(pattern for pattern, _ in self.targets)
            raise ValueError(f"ADAPTIVE_LOSS.TARGETS ({patterns}) match none of the losses {', '.join(losses)}")
        values = mean_over_ranks(losses, sorted(chosen))
        self.weights, self.non_finite = {}, frozenset(name for name in values if not math.isfinite(values[name]))
        out = {}
        for name, loss in losses.items():
            if name not in chosen:
                out[name] = loss
                continue
            weight = self._weight(chosen[name], values[name])
            if weight is None:
                self._leave_out(name, values[name])
                out[name] = connected_zero(loss, self.parameters)
            else:
                self.weights[name] = weight
                out[name] = weight * loss.float()
        self._log()
        return out

    def _weight(self, target: float, value: float) -> float | None:
        if not math.isfinite(value) or abs(value) < self.min_loss:
            return None
        weight = target / value
        if self.max_weight and abs(weight) > self.max_weight:
            weight = math.copysign(self.max_weight, weight)
        return weight

    def _leave_out(self, name: str, value: float) -> None:
        self.left_out[name] += 1
        if self.left_out[name] in REPORT_AT:
            logger.warning("%s is %g: left out of this step (%d steps so far)", name, value, self.left_out[name])

    def _log(self) -> None:
        if not has_event_storage():
            return
        storage = get_event_storage()
        for name, weight in self.weights.items():
            storage.put_scalar(f"adaptive_loss/weight_{name}", weight)
        for name, count in self.left_out.items():
            storage.put_scalar(f"adaptive_loss/left_out_{name}", count, smoothing_hint=False)

    def state_dict(self) -> dict:
        """The counts of left-out losses; the weights follow from each step's losses alone."""
        return {"left_out": dict(self.left_out)}

    def load_state_dict(self, state: dict) -> None:
        self.left_out = Counter(state.get("left_out", {}))
