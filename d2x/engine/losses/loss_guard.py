"""Skipping of steps whose loss jumps.

CPFLAME's released trainer skips a step whose loss exceeds the last accepted one by a factor. ``step_anyway`` and
``max_skips`` choose between its exact behaviour and one without its two traps.
"""

import logging
import math
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from d2x.engine.losses.transform import LossTransform

logger = logging.getLogger(__name__)

START = 1e9  # the reference before the first step, as released


class LossGuard(LossTransform):
    """Loss transform for ``TrainStep``: a batch whose total loss is ``factor`` times the last accepted one is skipped.

    A batch is kept when ``factor * reference > total``; then the total becomes the reference. A total that is not
    finite is never kept. Under DDP the total is the mean over all ranks, so that all decide alike.

    Args:
        factor: the k of "loss > k x previous".
        max_skips: after so many skips in a row a finite loss is accepted whatever its size, or one lucky low loss would
            end training; 0, as released, for no such limit.
        step_anyway: let the optimizer step with zero gradients on skipped batches, as the released code does: momentum
            and weight decay then still move the weights.
        parameters: the model's trained parameters, see ``connected_zero``.

    Raises:
        ValueError: factor is not positive.
    """

    def __init__(
        self,
        *,
        factor: float,
        max_skips: int = 0,
        step_anyway: bool = False,
        parameters: Iterable[nn.Parameter] = (),
    ):
        if not factor > 0:
            raise ValueError(f"SKIP_LOSS.FACTOR must be positive, got {factor}")
        self.factor, self.max_skips, self.step_anyway = factor, max_skips, step_anyway
        self.parameters = tuple(parameters)
        self.reference = START
        self.skips_in_a_row = 0
        self.skipped_batches = 0
        self.skipped = False  # the last call's decision

    def __call__(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Loss dict -> the same, or zeros with zero gradients."""
        values = mean_over_ranks(losses, sorted(losses))
        total = sum(values.values())
        self.non_finite = frozenset(name for name, value in values.items() if not math.isfinite(value))
        forced = self.max_skips and self.skips_in_a_row >= self.max_skips
        self.skipped = not (math.isfinite(total) and (forced or self.factor * self.reference > total))
        self.forbids_step = self.skipped and not self.step_anyway
        if self.skipped:
            self.skips_in_a_row += 1
            self.skipped_batches += 1
            logger.warning("loss %.4g against %.4g: step skipped (%d)", total, self.reference, self.skipped_batches)
        else:
            self.skips_in_a_row, self.reference = 0, total
        if has_event_storage():
            get_event_storage().put_scalar("skip_loss/skipped", self.skipped_batches, smoothing_hint=False)
        if not self.skipped:
            return losses
        return {
            name: connected_zero(loss, self.parameters) if self.non_finite or self.parameters else 0 * loss
            for name, loss in losses.items()
        }

    def state_dict(self) -> dict:
        return {
            "reference": self.reference,
            "skips_in_a_row": self.skips_in_a_row,
            "skipped_batches": self.skipped_batches,
        }

    def load_state_dict(self, state: dict) -> None:
        self.reference = state.get("reference", START)
        self.skips_in_a_row = state.get("skips_in_a_row", 0)
        self.skipped_batches = state.get("skipped_batches", 0)


def mean_over_ranks(losses: dict[str, Tensor], names: Sequence[str]) -> dict[str, float]:
    """The named losses as numbers, each the mean over all processes, the same in each (one all-reduce, one copy)."""
    stacked = torch.stack([losses[name].detach().float().reshape(()) for name in names])
    if comm.get_world_size() > 1:
        dist.all_reduce(stacked)
        stacked /= comm.get_world_size()
    return dict(zip(names, stacked.tolist()))


def connected_zero(loss: Tensor, parameters: Sequence[nn.Parameter]) -> Tensor:
    """A zero to stand in for a loss that must not be back-propagated, not even times 0, since 0 x NaN is NaN.

    It depends on every parameter, with a gradient of zero, because DDP waits for all of them.
    """
    if not parameters:
        return torch.zeros((), device=loss.device, requires_grad=True)
    return torch.stack(
        [parameter.flatten()[0].float() * 0 for parameter in parameters if parameter.requires_grad]
    ).sum()
