"""Learning-rate schedules that detectron2 lacks, and epochs turned into iterations."""

import logging
import math

from detectron2.config import CfgNode
from detectron2.solver import build_lr_scheduler as build_detectron2_scheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

logger = logging.getLogger(__name__)


class WarmupFlatCosineLR(LRScheduler):
    """Warm-up, constant, then half a cosine down to ``eta_min`` (CPFLAME's "delayed cosine").

    At iteration t with base rate b: ``t < warmup_iters``: b * f(t), f linear from ``warmup_factor`` to 1 (or constant);
    ``t <= flat_iters``: b; then ``eta_min + (b - eta_min) * (1 + cos(pi * (t - flat) / (max - flat))) / 2``, and
    ``eta_min`` from ``max_iters`` on.

    Args:
        optimizer: its groups' ``initial_lr`` are the base rates.
        max_iters, flat_iters, warmup_iters: iterations; warmup_iters <= flat_iters <= max_iters.
        eta_min: final rate, absolute, the same for all groups.
        warmup_method: "linear" or "constant".
        rise_after_end: follow the cosine up again past ``max_iters``, as the released code does.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        max_iters: int,
        flat_iters: int,
        eta_min: float = 0.0,
        warmup_iters: int = 0,
        warmup_factor: float = 1e-3,
        warmup_method: str = "linear",
        rise_after_end: bool = False,
        last_epoch: int = -1,
    ):
        if not warmup_iters <= flat_iters <= max_iters:
            raise ValueError(f"need warmup ({warmup_iters}) <= flat ({flat_iters}) <= total iterations ({max_iters})")
        if warmup_method not in ("linear", "constant"):
            raise ValueError(f"SOLVER.WARMUP_METHOD must be linear or constant, got '{warmup_method}'")
        self.max_iters, self.flat_iters, self.eta_min = max_iters, flat_iters, eta_min
        self.warmup_iters, self.warmup_factor, self.warmup_method = warmup_iters, warmup_factor, warmup_method
        self.rise_after_end = rise_after_end
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float | Tensor]:
        t = self.last_epoch
        if t < self.warmup_iters:
            along = t / self.warmup_iters if self.warmup_method == "linear" else 0.0
            return [base * (self.warmup_factor * (1 - along) + along) for base in self.base_lrs]
        if t <= self.flat_iters:
            return list(self.base_lrs)
        progress = (t - self.flat_iters) / max(self.max_iters - self.flat_iters, 1)
        if not self.rise_after_end:
            progress = min(progress, 1.0)
        return [self.eta_min + (base - self.eta_min) * (1 + math.cos(math.pi * progress)) / 2 for base in self.base_lrs]


class AveragingCycleLR(LRScheduler):
    """Another schedule until ``start``, then cosine cycles from ``lr_start`` to ``lr_end``, one per sampled weight.

    With weight averaging in "swa" mode each cycle ends where a weight enters the average (cyclic SWA,
    arXiv:1803.05407, fig. 1). The cosine is that of torch's ``CosineAnnealingWarmRestarts``.

    Args:
        before: the schedule up to ``start``; it is stepped by this one.
        start, period: iterations.
        lr_start, lr_end: absolute rates of every group.
    """

    def __init__(self, before: LRScheduler, *, start: int, period: int, lr_start: float, lr_end: float):
        self.before, self.start, self.period = before, start, period
        self.lr_start, self.lr_end = lr_start, lr_end
        super().__init__(before.optimizer)

    def step(self, epoch: int | None = None) -> None:
        if self.last_epoch >= 0:
            self.before.step()
        super().step(epoch)

    def get_lr(self) -> list[float | Tensor]:
        if self.last_epoch < self.start:
            return self.before.get_last_lr()
        along = (self.last_epoch - self.start) % self.period / self.period
        rate = self.lr_end + (self.lr_start - self.lr_end) * (1 + math.cos(math.pi * along)) / 2
        return [rate] * len(self.optimizer.param_groups)

    def state_dict(self) -> dict:
        state = {k: v for k, v in self.__dict__.items() if k not in ("optimizer", "before")}
        return {**state, "before": self.before.state_dict()}

    def load_state_dict(self, state_dict: dict) -> None:
        state = dict(state_dict)
        self.before.load_state_dict(state.pop("before"))
        self.__dict__.update(state)


def build_lr_scheduler(cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
    """detectron2's schedules by name, plus "WarmupFlatCosineLR", then the averaging cycles if they are on."""
    averaging = cfg.WEIGHT_AVERAGING
    schedule = _schedule_by_name(cfg, optimizer)
    if averaging.ENABLED and averaging.CYCLE_LR:
        lr_start, lr_end = averaging.CYCLE_LR
        return AveragingCycleLR(
            schedule, start=averaging.START, period=averaging.PERIOD, lr_start=lr_start, lr_end=lr_end
        )
    return schedule


def _schedule_by_name(cfg: CfgNode, optimizer: Optimizer) -> LRScheduler:
    if cfg.SOLVER.LR_SCHEDULER_NAME != "WarmupFlatCosineLR":
        return build_detectron2_scheduler(cfg, optimizer)
    max_iters = cfg.SOLVER.MAX_ITER
    return WarmupFlatCosineLR(
        optimizer,
        max_iters=max_iters,
        flat_iters=max(int(max_iters * cfg.SOLVER.FLAT_FRACTION), cfg.SOLVER.WARMUP_ITERS),
        eta_min=cfg.SOLVER.BASE_LR_END,
        warmup_iters=cfg.SOLVER.WARMUP_ITERS,
        warmup_factor=cfg.SOLVER.WARMUP_FACTOR,
        warmup_method=cfg.SOLVER.WARMUP_METHOD,
    )


def epochs_to_iterations(cfg: CfgNode, num_images: int) -> CfgNode:
    """Read the solver's periods as epochs and return a config in iterations (``SOLVER.UNIT`` "epochs").

    An epoch is ``num_images // IMS_PER_BATCH`` iterations, at least one. The warm-up factor becomes one over the
    warm-up's length, so that the rate rises from a single iteration's share. An evaluation period other than 0 is
    rounded up to a multiple of 200 iterations (the released code's rule).
    """
    if cfg.SOLVER.UNIT == "iterations":
        return cfg
    if cfg.SOLVER.UNIT != "epochs":
        raise ValueError(f"SOLVER.UNIT must be 'iterations' or 'epochs', got '{cfg.SOLVER.UNIT}'")
    cfg = cfg.clone()
    frozen = cfg.is_frozen()
    cfg.defrost()
    per_epoch = max(num_images // cfg.SOLVER.IMS_PER_BATCH, 1)
    cfg.SOLVER.UNIT = "iterations"
    for key in ("MAX_ITER", "WARMUP_ITERS", "CHECKPOINT_PERIOD"):
        cfg.SOLVER[key] = int(cfg.SOLVER[key] * per_epoch)
    # By item, which does not count as reading: whether anything uses them is seen later (d2x.config.unread).
    if cfg.SOLVER.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        cfg.SOLVER.STEPS = tuple(int(step * per_epoch) for step in cfg.SOLVER["STEPS"])
    cfg.SOLVER.WARMUP_FACTOR = 1.0 / max(cfg.SOLVER["WARMUP_ITERS"], 1)
    averaging = cfg.WEIGHT_AVERAGING
    averaging.START = int(averaging["START"] * per_epoch)
    averaging.PERIOD = max(int(averaging["PERIOD"] * per_epoch), 1)
    cfg.TEST.EVAL_PERIOD = math.ceil(cfg.TEST["EVAL_PERIOD"] * per_epoch / 200) * 200
    logger.info("SOLVER.UNIT epochs: %d iterations an epoch, %d in all", per_epoch, cfg.SOLVER.MAX_ITER)
    if frozen:
        cfg.freeze()
    return cfg
