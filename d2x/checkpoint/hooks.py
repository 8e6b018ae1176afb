"""Checkpoint hooks: when checkpoints are written, and which of them are kept."""

import contextlib
import logging
import math
import os
from collections.abc import Callable

from detectron2.engine import HookBase

from d2x.checkpoint.files import Checkpointer

logger = logging.getLogger(__name__)


class PeriodicCheckpoints(HookBase):
    """Saves everything every ``period`` steps and after the last one (``model_final.pth``); deletes the oldest.

    Args:
        checkpointer: of the trainer.
        period: iterations.
        keep_last: how many of the latest ``model_NNNNNNN.pth`` stay, those of earlier processes counted; 0 for all. One
            more than is needed for a damaged file not to matter: at least 2.
        safetensors: write the final weights as ``model_final.safetensors``, too.

    Raises:
        ValueError: ``keep_last`` is 1 or negative.
    """

    def __init__(self, checkpointer: Checkpointer, period: int, *, keep_last: int = 0, safetensors: bool = False):
        if keep_last < 0 or keep_last == 1:
            raise ValueError(f"CHECKPOINT.KEEP_LAST must be 0 (all) or at least 2, got {keep_last}")
        self._checkpointer, self._period = checkpointer, max(int(period), 1)
        self._keep_last, self._safetensors = keep_last, safetensors

    def after_step(self) -> None:
        if self._is_last() and self._safetensors:  # first: after model_final.pth a killed run has nothing left to do
            self._checkpointer.save_weights("model_final.safetensors", iteration=self.trainer.iter)
        if self._is_last() or (self.trainer.iter + 1) % self._period == 0:
            self.save_now()

    def save_now(self) -> str:
        """Save the state after the current step, over a checkpoint of the same step; returns the file's path."""
        name = "model_final" if self._is_last() else f"model_{self.trainer.iter:07d}"
        self._checkpointer.save(name, iteration=self.trainer.iter)
        self._delete_old()
        return os.path.join(self._checkpointer.save_dir, f"{name}.pth")

    def _is_last(self) -> bool:
        return self.trainer.iter + 1 >= self.trainer.max_iter

    def _delete_old(self) -> None:
        files = [file for file in self._checkpointer.resumable_files() if not file.endswith("_final.pth")]
        for file in files[self._keep_last :] if self._keep_last else ():
            with contextlib.suppress(FileNotFoundError):
                os.unlink(file)


class BestCheckpoint(HookBase):
    """Keeps the weights with the best value of a metric as ``model_best.pth``; put it behind the evaluation.

    They are the weights that were evaluated, averaged ones if there are, and nothing else: a run is resumed from the
    other checkpoints, never from this one.

    Args:
        checkpointer: of the trainer.
        metric: a name in the evaluation's results, such as "bbox/AP50".
        smaller_is_better: of the metric.
        evaluated: makes a context inside which the model holds the evaluated weights.
        safetensors: write ``model_best.safetensors`` instead.
    """

    def __init__(
        self,
        checkpointer: Checkpointer,
        metric: str,
        *,
        smaller_is_better: bool = False,
        evaluated: Callable[[], contextlib.AbstractContextManager] = contextlib.nullcontext,
        safetensors: bool = False,
    ):
        self._checkpointer, self._metric, self._evaluated = checkpointer, metric, evaluated
        self._sign = -1 if smaller_is_better else 1
        self._name = f"model_best.{'safetensors' if safetensors else 'pth'}"
        self.best: float | None = None
        self._seen = -1

    def after_step(self) -> None:
        self._compare()

    def after_train(self) -> None:
        self._compare()

    def before_train(self) -> None:
        self._compare()  # an evaluation that was made up for

    def _compare(self) -> None:
        value, iteration = self.trainer.storage.latest().get(self._metric, (math.nan, -1))
        if iteration <= self._seen:
            return
        self._seen = iteration
        if math.isfinite(value) and (self.best is None or self._sign * (value - self.best) > 0):
            self.best = value
            with self._evaluated():
                path = self._checkpointer.save_weights(self._name, iteration=iteration, **{self._metric: value})
            logger.info("%s %.4g is the best so far: weights saved as %s", self._metric, value, path)

    def state_dict(self) -> dict:
        return {"metric": self._metric, "best": self.best}

    def load_state_dict(self, state: dict) -> None:
        if state["metric"] == self._metric:
            self.best = state["best"]
