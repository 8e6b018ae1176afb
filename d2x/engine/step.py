"""One training step: accumulation, mixed precision on any device, losses re-weighted before they are summed."""

import contextlib
import functools
import operator
import time
from collections.abc import Sequence

import torch
from detectron2.engine import SimpleTrainer
from torch import Tensor

from d2x.engine.health.step_guard import StepGuard
from d2x.engine.losses.transform import LossTransform

PRECISIONS = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


class TrainStep(SimpleTrainer):
    """detectron2's ``SimpleTrainer`` whose step can accumulate gradients, autocast, and re-weight losses.

    Args:
        model, data_loader, optimizer: as in ``SimpleTrainer``.
        precision: "float32", "float16" (scaled gradients; CUDA only) or "bfloat16".
        accumulate: batches per optimizer step; each loss is divided by it.
        loss_transforms: applied in order to the model's loss dict; the sum of what the last one returns is
            back-propagated, while the model's own values are what is logged. One that forbids the step is heeded
            unless another of the accumulated batches allows it.
        guard: may forbid the step when something is not finite; None lets detectron2's writer raise.
    """

    def __init__(
        self,
        model,
        data_loader,
        optimizer,
        *,
        precision: str = "float32",
        accumulate: int = 1,
        loss_transforms: Sequence[LossTransform] = (),
        guard: StepGuard | None = None,
    ):
        super().__init__(model, data_loader, optimizer)
        if precision not in PRECISIONS:
            raise ValueError(f"SOLVER.AMP.PRECISION must be float16 or bfloat16, got '{precision}'")
        self.device_type = next(model.parameters()).device.type
        if precision == "float16" and self.device_type == "cpu":
            raise ValueError("SOLVER.AMP.PRECISION float16 needs a GPU; use bfloat16 on the CPU")
        if accumulate < 1:
            raise ValueError(f"SOLVER.ACCUMULATE must be at least 1, got {accumulate}")
        self.dtype, self.accumulate = PRECISIONS[precision], accumulate
        self.loss_transforms = list(loss_transforms)
        self.guard = guard
        self.batches_taken = 0  # of the loader's iterator
        self.grad_scaler = torch.amp.GradScaler(self.device_type, enabled=precision == "float16")

    def run_step(self) -> None:
        self.optimizer.zero_grad()
        logged: dict[str, Tensor] = {}
        batches, seen, totals = [], [], []
        data_time = 0.0
        allowed = False
        if self.guard:
            self.guard.before_step()
        for index in range(self.accumulate):
            start = time.perf_counter()
            data = next(self._data_loader_iter)
            self.batches_taken += 1
            data_time += time.perf_counter() - start
            last = index == self.accumulate - 1
            with contextlib.ExitStack() as stack:
                if not last and hasattr(self.model, "no_sync"):
                    stack.enter_context(self.model.no_sync())
                losses, total = self._forward_backward(data)
            allowed = allowed or not any(t.forbids_step for t in self.loss_transforms)
            for name, value in losses.items():
                logged[name] = logged.get(name, 0) + value.detach() / self.accumulate
            batches.append(data)
            seen.append(losses)
            totals.append(total)
        self.after_backward()
        scaled = self.grad_scaler.is_enabled()
        if self.guard and not self.guard.allows(
            self.iter, batches, seen, torch.stack(totals).sum(), check_gradients=not scaled
        ):
            return  # detectron2's writer would raise
        self._write_metrics(logged, data_time)
        if not allowed:
            return
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _forward_backward(self, data: list[dict]) -> tuple[dict[str, Tensor], Tensor]:
        """The model's losses that no transform has dealt with, and the value that was back-propagated."""
        with torch.autocast(self.device_type, self.dtype, enabled=self.dtype != torch.float32):
            losses = self.model(data)
        weighted = losses
        for transform in self.loss_transforms:
            weighted = transform(weighted)
        total = functools.reduce(operator.add, weighted.values()) / self.accumulate
        self.grad_scaler.scale(total).backward()
        dealt_with = {name for t in self.loss_transforms for name in t.non_finite}
        return {name: value.detach() for name, value in losses.items() if name not in dealt_with}, total.detach()

    def state_dict(self) -> dict:
        transforms = [transform.state_dict() for transform in self.loss_transforms]
        return {
            **super().state_dict(),
            "grad_scaler": self.grad_scaler.state_dict(),
            "loss_transforms": transforms,
            **({"guard": self.guard.state_dict()} if self.guard else {}),
        }

    def load_state_dict(self, state_dict: dict) -> None:
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])
        for transform, saved in zip(self.loss_transforms, state_dict.get("loss_transforms", ())):
            if saved:
                transform.load_state_dict(saved)
        if self.guard and "guard" in state_dict:
            self.guard.load_state_dict(state_dict["guard"])
        super().load_state_dict(state_dict)
