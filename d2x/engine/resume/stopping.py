"""Early ends of training: asked for by a signal, or because a metric no longer improves."""

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from d2x.checkpoint.hooks import PeriodicCheckpoints
from d2x.distributed import from_main

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Seconds in which signals count as one: a terminal and a launcher may both send one to every process.
SAME_EVENT = 3.0


def ignore_stop_signals() -> None:
    """For helper processes, such as a loader's workers: they end when the process they help does."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


class StopSignals:
    """Context manager: inside it the first SIGTERM or SIGINT is remembered instead of ending the process.

    A second one, a few seconds later or more, acts as without this class. In another than the main thread, which
    signals do not reach, it does nothing.
    """

    def __init__(self, signals: Sequence[signal.Signals] = SIGNALS):
        self._signals = signals
        self.received: signal.Signals | None = None

    def __enter__(self) -> "StopSignals":
        mine = threading.current_thread() is threading.main_thread()
        self._before = {each: signal.signal(each, self._remember) for each in self._signals if mine}
        return self

    def __exit__(self, *error) -> None:
        for each, handler in self._before.items():
            signal.signal(each, handler)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            if time.monotonic() - self._when > SAME_EVENT:
                for each, handler in self._before.items():
                    signal.signal(each, handler)
                os.kill(os.getpid(), number)
            return
        self.received, self._when = signal.Signals(number), time.monotonic()
        # not through logging, whose lock the interrupted code may hold
        os.write(2, f"{self.received.name}: finishing this step, then saving; once more stops at once\n".encode())


class StopOnSignal(HookBase):
    """After a step during which any process got a signal: saves, and asks the trainer to stop. Put it last.

    Args:
        signals: what was received in this process.
        checkpoints: of the main process, None in the others.
    """

    trainer: Any  # detectron2's, with ``request_stop``

    def __init__(self, signals: StopSignals, checkpoints: PeriodicCheckpoints | None):
        self._signals, self._checkpoints = signals, checkpoints

    def after_step(self) -> None:
        name = signal_anywhere(self._signals.received)
        if not name:
            return
        # again, if it was just done: an evaluation may have come after that
        saved = f", saved {self._checkpoints.save_now()}" if self._checkpoints else ""
        self.trainer.request_stop(f"{name}: stopped after iteration {self.trainer.iter}{saved}; go on with --resume")


def signal_anywhere(received: signal.Signals | None) -> str:
    """Name of a signal that some process has received, the same in each; "" for none. One small all-reduce."""
    if comm.get_world_size() == 1:
        return received.name if received else ""
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else "cpu"
    number = torch.tensor(int(received or 0), device=device)
    dist.all_reduce(number, dist.ReduceOp.MAX)
    return signal.Signals(int(number)).name if number else ""


class EarlyStop(HookBase):
    """Ends training when a metric has not improved for some evaluations; put it behind the evaluation.

    The step after the decision is the last one: it ends as the last iteration of a full run does, with averaged weights
    in place and ``model_final.pth`` saved.

    Args:
        metric: a name in the evaluation's results, such as "bbox/AP".
        patience: evaluations without an improvement, at least 1.
        min_delta: an improvement must be larger than this.
        smaller_is_better: of the metric.
        period: iterations between two evaluations.

    Raises:
        ValueError: ``patience`` or ``period`` is below 1.
    """

    def __init__(
        self, metric: str, *, patience: int, min_delta: float = 0.0, smaller_is_better: bool = False, period: int
    ):
        if patience < 1:
            raise ValueError(f"EARLY_STOP.PATIENCE must be at least 1, got {patience}")
        if period < 1:
            raise ValueError("EARLY_STOP.METRIC needs evaluations during training: set TEST.EVAL_PERIOD")
        self._metric, self._patience, self._min_delta, self._period = metric, patience, min_delta, period
        self._sign = -1 if smaller_is_better else 1
        self.best: float | None = None
        self.without = 0  # evaluations since the best one
        self.end: int | None = None  # iterations in all, once decided
        self._seen = -1

    @classmethod
    def from_cfg(cls, cfg: CfgNode) -> "EarlyStop":
        node = cfg.EARLY_STOP
        rules = {"min_delta": node.MIN_DELTA, "smaller_is_better": node.SMALLER_IS_BETTER}
        return cls(node.METRIC, patience=node.PATIENCE, period=cfg.TEST.EVAL_PERIOD, **rules)

    def before_train(self) -> None:
        if self.trainer.iter < self.trainer.start_iter:
            self.after_evaluation()  # one that was made up for

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self._period == 0:
            self.after_evaluation()

    def after_evaluation(self) -> None:
        """Look at the latest result; the main process, which has it, decides for all."""
        value, iteration = self.trainer.storage.latest().get(self._metric, (math.nan, -1))
        if comm.is_main_process() and iteration > self._seen:
            self._seen = iteration
            self._count(value)
        elif comm.is_main_process() and self.trainer.start_iter <= self.trainer.iter < self.trainer.max_iter - 1:
            known = [name for name, (_, when) in self.trainer.storage.latest().items() if when == self.trainer.iter]
            raise ValueError(f"EARLY_STOP.METRIC '{self._metric}' is no result of the evaluation: {', '.join(known)}")
        self.best, self.without = from_main((self.best, self.without))
        if self.without >= self._patience and self.end is None:
            self.end = min(self.trainer.iter + 2, self.trainer.max_iter)
            self.trainer.max_iter = self.end
            logger.info(
                "%s has not improved for %d evaluations (best %.4g): training ends with iteration %d",
                self._metric, self.without, self.best if self.best is not None else math.nan, self.end - 1,
            )  # fmt: skip

    def _count(self, value: float) -> None:
        better = self.best is None or self._sign * (value - self.best) > self._min_delta
        if math.isfinite(value) and better:
            self.best, self.without = value, 0
        else:
            self.without += 1

    def state_dict(self) -> dict:
        return {"metric": self._metric, "best": self.best, "without": self.without, "end": self.end}

    def load_state_dict(self, state: dict) -> None:
        if state["metric"] != self._metric:
            return
        self.best, self.without = state["best"], state["without"]
        if state["end"] is not None and self.without >= self._patience:  # else more patience was given since
            self.trainer.max_iter = self.end = state["end"]
