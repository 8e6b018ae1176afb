"""Hooks that the config asks for: what looks at losses, and at evaluation results."""

import contextlib
from collections.abc import Callable

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from d2x.checkpoint.files import Checkpointer
from d2x.checkpoint.hooks import BestCheckpoint
from d2x.engine.health.divergence import LossCollapse
from d2x.engine.resume.stopping import EarlyStop


def hooks_of_every_step(cfg: CfgNode) -> list[HookBase]:
    """By ``HEALTH.COLLAPSE``. Their state changes with every step: put them before the checkpoints."""
    node = cfg.HEALTH.COLLAPSE
    return [LossCollapse(window=node.WINDOW, factor=node.FACTOR, action=node.ACTION)] if node.WINDOW else []


def hooks_of_results(
    cfg: CfgNode, checkpointer: Checkpointer, evaluated: Callable[[], contextlib.AbstractContextManager]
) -> list[HookBase]:
    """By ``CHECKPOINT.KEEP_BEST`` and ``EARLY_STOP``. A resumed run evaluates first: put them behind the evaluation.

    Args:
        evaluated: see ``BestCheckpoint``.
    """
    checkpoint, stop = cfg.CHECKPOINT, cfg.EARLY_STOP
    found: list[HookBase] = []
    if checkpoint.KEEP_BEST and comm.is_main_process():
        found.append(
            BestCheckpoint(
                checkpointer,
                checkpoint.KEEP_BEST,
                smaller_is_better=checkpoint.SMALLER_IS_BETTER,
                evaluated=evaluated,
                safetensors=checkpoint.SAFETENSORS,
            )
        )
    if stop.METRIC:
        found.append(
            EarlyStop(
                stop.METRIC,
                patience=stop.PATIENCE,
                min_delta=stop.MIN_DELTA,
                smaller_is_better=stop.SMALLER_IS_BETTER,
                period=cfg.TEST.EVAL_PERIOD,
            )
        )
    return found
