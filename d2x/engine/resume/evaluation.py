"""Evaluation during training that a resumed run makes up for when it was cut short."""

from collections.abc import Callable

import torch.distributed as dist
from detectron2.engine import hooks
from detectron2.utils import comm
from torch import nn


class ResumableEvalHook(hooks.EvalHook):
    """detectron2's evaluation hook, which remembers for which iteration it has run last.

    A checkpoint is written before the evaluation of its iteration, so that a failing evaluation costs nothing. A run
    that is resumed from there evaluates first: what depends on the results (the best weights, early stopping) then goes
    on as in a run that was never interrupted.
    """

    def __init__(self, eval_period: int, eval_function: Callable[[], dict]):
        super().__init__(eval_period, eval_function)
        self._evaluated = -1

    def before_train(self) -> None:
        start = self.trainer.start_iter
        due = self._period > 0 and start > 0 and start % self._period == 0 and start < self.trainer.max_iter
        if due and self._evaluated < start - 1:
            self.trainer.iter = self.trainer.storage.iter = start - 1
            self._do_eval()

    def _do_eval(self) -> None:
        super()._do_eval()
        self._evaluated = self.trainer.iter

    def state_dict(self) -> dict:
        return {"evaluated": self._evaluated}

    def load_state_dict(self, state: dict) -> None:
        self._evaluated = state["evaluated"]


def share_buffers(model: nn.Module) -> None:
    """Give every process the main one's buffers (batch-norm statistics), so that all evaluate the same model."""
    if comm.get_world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, 0)
