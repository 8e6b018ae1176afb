"""Averaged weights (EMA or SWA) as a detectron2 hook around ``torch.optim.swa_utils``."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import nn
from torch.optim.swa_utils import PARAM_LIST, AveragedModel, get_ema_multi_avg_fn

logger = logging.getLogger(__name__)


def ramped_decay(decay: float, updates: int) -> float:
    """Decay of an EMA after so many updates: it grows with them, so that the random start is forgotten early."""
    return min(decay, (1 + updates) / (10 + updates))


def _ramped_ema(decay: float):
    @torch.no_grad()
    def average(averaged: PARAM_LIST, current: PARAM_LIST, num_averaged: torch.Tensor | int) -> None:
        get_ema_multi_avg_fn(ramped_decay(decay, int(num_averaged)))(averaged, current, num_averaged)

    return average


class WeightAveraging(HookBase):
    """Keeps an average of the trained weights, evaluates it, and leaves it in the model at the end.

    The average is updated after every ``period``-th step from iteration ``start`` on. After the last step of a run
    that updated it, weights and average change places, so put this hook before the checkpointer and the evaluation:
    ``model_final.pth`` then holds the average. A run too short for one keeps its weights as trained, and says so. The
    state travels in every checkpoint, so resuming continues the average.

    Args:
        model: the (unwrapped) model whose parameters and buffers are averaged.
        mode: "ema" or "swa".
        decay: of the EMA.
        ramp: see ``WEIGHT_AVERAGING.RAMP``.
        start, period: iterations.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        mode: str = "ema",
        decay: float = 0.9998,
        ramp: bool = True,
        start: int = 0,
        period: int = 1,
    ):
        if mode not in ("ema", "swa"):
            raise ValueError(f"WEIGHT_AVERAGING.MODE must be 'ema' or 'swa', got '{mode}'")
        if period < 1:
            raise ValueError(f"WEIGHT_AVERAGING.PERIOD must be at least 1, got {period}")
        self._start, self._period = start, period
        average = None
        if mode == "ema":
            average = _ramped_ema(decay) if ramp else get_ema_multi_avg_fn(decay)
        self.averaged = AveragedModel(model, multi_avg_fn=average, use_buffers=True)
        self._model = model

    @classmethod
    def from_cfg(cls, cfg: CfgNode, model: nn.Module) -> "WeightAveraging":
        node = cfg.WEIGHT_AVERAGING
        return cls(model, mode=node.MODE, decay=node.DECAY, ramp=node.RAMP, start=node.START, period=node.PERIOD)

    def after_step(self) -> None:
        done = self.trainer.iter + 1 - self._start
        if done > 0 and done % self._period == 0:
            self.averaged.update_parameters(self._model)
        if self.trainer.iter + 1 < self.trainer.max_iter:
            return
        if self.num_averaged:
            self._swap()
        else:
            logger.warning(
                "WEIGHT_AVERAGING took no average in %d iterations (START %d, PERIOD %d): the weights stay as trained",
                *(self.trainer.max_iter, self._start, self._period),
            )

    @property
    def num_averaged(self) -> int:
        """How many times the average was updated."""
        return int(self.averaged.n_averaged)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the context the model holds the average (if there is one yet, and unless training has ended)."""
        swap = bool(self.num_averaged) and self.trainer.iter + 1 < self.trainer.max_iter
        if swap:
            self._swap()
        try:
            yield
        finally:
            if swap:
                self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        ours, theirs = self._model.state_dict(), self.averaged.module.state_dict()
        for name, value in ours.items():
            kept = value.clone()
            value.copy_(theirs[name])
            theirs[name].copy_(kept)

    def state_dict(self) -> dict:
        return self.averaged.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.averaged.load_state_dict(state)
