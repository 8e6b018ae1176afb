"""Guard against steps whose loss or gradient is not finite: skipped, counted, reported, ended when they go on."""

import json
import logging
import math
import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from detectron2.structures import Instances
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from d2x.atomic_files import atomic_write, write_text
from d2x.checkpoint.files import Checkpointer
from d2x.distributed import gather

logger = logging.getLogger(__name__)

EXAMPLES = 5
DIAGNOSTICS = "diagnostics"  # folder of the saved reports, below OUTPUT_DIR


class TrainingDiverged(ValueError):
    """Training cannot go on; the message is one line that says why and where to look."""


class StepGuard:
    """Decides, after the backward pass, whether the optimizer may step; all processes decide alike.

    A step is skipped when the sum of the losses or the norm of all gradients is not finite in any process. Buffers
    (batch-norm statistics) that the forward pass has changed are put back, so that a skipped step leaves no trace in
    the model. After ``max_in_a_row`` skipped steps what is needed to look into it is saved, and training ends.

    Args:
        model: whose gradients and buffers are watched.
        max_in_a_row: 0 for no limit.
        checkpointer: saves the weights, below its folder; None saves nothing.
        config: text of the run's config.
    """

    def __init__(
        self, model: nn.Module, *, max_in_a_row: int = 10, checkpointer: Checkpointer | None = None, config: str = ""
    ):
        if max_in_a_row < 0:
            raise ValueError(f"HEALTH.MAX_NON_FINITE must not be negative, got {max_in_a_row}")
        self.model, self.max_in_a_row = model, max_in_a_row
        self.checkpointer, self.config = checkpointer, config
        self.skipped = self.in_a_row = 0
        self._buffers = [buffer for buffer in model.buffers() if buffer.numel()]
        self._before: list[Tensor] = []

    def before_step(self) -> None:
        """Remember the buffers."""
        if not self._before:
            self._before = [buffer.clone() for buffer in self._buffers]
        for kept, buffer in zip(self._before, self._buffers):
            kept.copy_(buffer)

    def allows(
        self, iteration: int, batches: Sequence[list[dict]], losses: Sequence[dict[str, Tensor]], total: Tensor, *,
        check_gradients: bool = True,
    ) -> bool:  # fmt: skip
        """Whether the step may be taken. Call it in every process, after the backward passes.

        Args:
            iteration: for the report.
            batches: the step's batches.
            losses: of each batch, as the model gave them.
            total: sum of what was back-propagated, a scalar.
            check_gradients: False under a gradient scaler, which looks at them itself.

        Raises:
            TrainingDiverged: this was the last of ``max_in_a_row`` skipped steps; names the folder with the reports.
        """
        fine = total.detach().isfinite()
        if check_gradients:
            fine = fine & nn.utils.get_total_norm(self._gradients().values()).isfinite().to(fine.device)
        if comm.get_world_size() > 1:
            votes = fine.to(torch.int32)
            dist.all_reduce(votes, dist.ReduceOp.MIN)
            fine = votes.bool()
        if fine.item():
            self.in_a_row = 0
            return True
        for kept, buffer in zip(self._before, self._buffers):
            buffer.copy_(kept)
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1
        reports = self._describe(batches, losses)
        reason = "; ".join(dict.fromkeys(report["reason"] for report in reports if report["reason"]))
        files = [name for report in reports for name in report["files"]]
        logger.warning(
            "iteration %d: %s: step skipped (%d in a row, %d in all); images: %s",
            iteration, reason, self.in_a_row, self.skipped, ", ".join(files),
        )  # fmt: skip
        if has_event_storage():
            get_event_storage().put_scalar("health/skipped_steps", self.skipped, smoothing_hint=False)
        if self.max_in_a_row and self.in_a_row >= self.max_in_a_row:
            where = self._save_bundle(iteration, batches, reports)
            raise TrainingDiverged(
                f"{self.in_a_row} steps in a row had a loss or gradient that is not finite (iteration {iteration}:"
                f" {reason}){f'; batch, config and weights are in {where}' if where else ''}"
            )
        return False

    def state_dict(self) -> dict:
        return {"skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state: dict) -> None:
        self.skipped, self.in_a_row = state["skipped"], state["in_a_row"]

    def _gradients(self) -> dict[str, Tensor]:
        return {name: part.grad for name, part in self.model.named_parameters() if part.grad is not None}

    def _describe(self, batches: Sequence[list[dict]], losses: Sequence[dict[str, Tensor]]) -> list[dict]:
        """One report of each process, the same list in each: ``reason``, ``files``, ``losses``, ``gradients``."""
        values = [{name: float(loss) for name, loss in terms.items()} for terms in losses]
        bad = [[name for name, value in terms.items() if not math.isfinite(value)] for terms in values]
        gradients = [name for name, grad in self._gradients().items() if not grad.isfinite().all()]
        reasons = [f"{name} is {terms[name]:g}" for terms, names in zip(values, bad) for name in names]
        suspects = [batch for batch, names in zip(batches, bad) if names]
        if not any(gather(bool(reasons))):  # else the gradients follow from the losses
            reasons = [f"the gradient of {_some(gradients)} is not finite"]
            suspects = list(batches)
        files = [_name(record) for batch in suspects for record in batch]
        return gather({"reason": ", ".join(reasons), "files": files, "losses": values, "gradients": gradients})

    def _save_bundle(self, iteration: int, batches: Sequence[list[dict]], reports: list[dict]) -> str:
        if self.checkpointer is None or not self.checkpointer.save_dir:
            return ""
        name = os.path.join(DIAGNOSTICS, f"iteration_{iteration:07d}")
        folder = os.path.join(self.checkpointer.save_dir, name)
        os.makedirs(folder, exist_ok=True)
        with atomic_write(os.path.join(folder, f"batch_rank{comm.get_rank()}.pt")) as file:
            torch.save([[_plain(record) for record in batch] for batch in batches], file)
        weights = self.checkpointer.save_weights(os.path.join(name, "weights.pth"), iteration=iteration)
        if comm.is_main_process():
            report = {"iteration": iteration, "weights": weights, "processes": reports}
            write_text(os.path.join(folder, "report.json"), json.dumps(report, indent=1))
            write_text(os.path.join(folder, "config.yaml"), self.config)
        return folder


def _name(record: dict) -> str:
    return str(record.get("file_name", "?")) if isinstance(record, dict) else "?"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:EXAMPLES]) + (f" and {len(names) - EXAMPLES} more" if len(names) > EXAMPLES else "")


def _plain(record: Any) -> Any:
    """A mapped record without classes of detectron2, so that it can be read with ``weights_only``."""
    if not isinstance(record, dict):
        return record
    plain = {key: value for key, value in record.items() if isinstance(value, (Tensor, str, int, float, bool))}
    instances = record.get("instances")
    if isinstance(instances, Instances):
        plain["gt_boxes"], plain["gt_classes"] = instances.gt_boxes.tensor, instances.gt_classes
    return plain
