"""Detection of diverged training: a loss that blew up for good, or one of its parts that vanished."""

import logging
import math
import statistics
from collections import deque

from detectron2.config import CfgNode
from detectron2.engine import HookBase

from d2x.distributed import from_main
from d2x.engine.health.step_guard import TrainingDiverged

logger = logging.getLogger(__name__)

ACTIONS = ("warn", "stop")
NOTHING = 1e-12  # a loss whose median is below this has vanished


class LossCollapse(HookBase):
    """Watches medians of the losses over windows of steps.

    The total has collapsed when its median is ``factor`` times the lowest median so far: single bad batches do not
    count, a run that does not come back does. A part has vanished when its median is (nearly) zero and an earlier one
    was not. Each is reported once, until it recovers. ``ADAPTIVE_LOSS`` is one cure; others are a lower rate, a longer
    warm-up and gradient clipping.

    Args:
        window: steps; the losses are looked at whenever so many are complete.
        factor: above 1.
        action: "warn", or "stop" to end training with ``TrainingDiverged``.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(self, *, window: int, factor: float, action: str = "warn"):
        if window < 1 or not factor > 1 or action not in ACTIONS:
            raise ValueError(
                f"HEALTH.COLLAPSE: WINDOW {window} must be at least 1, FACTOR {factor} above 1, ACTION '{action}' one"
                f" of {', '.join(ACTIONS)}"
            )
        self._window, self._factor, self._action = window, factor, action
        self._recent: dict[str, deque[float]] = {}
        self.lowest: float | None = None
        self.present: set[str] = set()  # parts that had a median above zero
        self.reported: set[str] = set()

    @classmethod
    def from_cfg(cls, cfg: CfgNode) -> "LossCollapse":
        node = cfg.HEALTH.COLLAPSE
        return cls(window=node.WINDOW, factor=node.FACTOR, action=node.ACTION)

    def after_step(self) -> None:
        iteration = self.trainer.iter
        for name, (value, when) in self.trainer.storage.latest().items():
            if when == iteration and "loss" in name and "/" not in name and math.isfinite(value):
                self._recent.setdefault(name, deque(maxlen=self._window)).append(float(value))
        if (iteration + 1) % self._window:
            return
        problem = self._look()
        if problem:
            logger.warning("iteration %d: %s", iteration, problem)
        if self._action == "stop":
            problem = from_main(problem)  # the losses are with the main process
            if problem:
                raise TrainingDiverged(f"iteration {iteration}: {problem}; HEALTH.COLLAPSE.ACTION is stop")

    def _look(self) -> str:
        medians = {name: statistics.median(values) for name, values in self._recent.items() if values}
        problems = {}
        total = medians.pop("total_loss", None)
        if total is not None:
            if self.lowest is not None and total > self._factor * max(self.lowest, NOTHING):
                problems["total_loss"] = (
                    f"the loss has collapsed: median {total:.4g} over {self._window} steps, {self.lowest:.4g} before"
                )
            self.lowest = total if self.lowest is None else min(self.lowest, total)
        for name, median in medians.items():
            if abs(median) > NOTHING:
                self.present.add(name)
            elif name in self.present:
                problems[name] = f"{name} has vanished: median {median:.4g} over {self._window} steps"
        news = [text for name, text in problems.items() if name not in self.reported]
        self.reported = set(problems)
        return "; ".join(news)

    def state_dict(self) -> dict:
        return {
            "recent": {name: list(values) for name, values in self._recent.items()},
            "lowest": self.lowest,
            "present": sorted(self.present),
            "reported": sorted(self.reported),
        }

    def load_state_dict(self, state: dict) -> None:
        self._recent = {name: deque(values, maxlen=self._window) for name, values in state["recent"].items()}
        self.lowest = state["lowest"]
        self.present, self.reported = set(state["present"]), set(state["reported"])
