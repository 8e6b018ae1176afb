"""Builder of the loss transforms that a config asks for."""

from detectron2.config import CfgNode
from torch import nn

from d2x.engine.losses.adaptive_loss import AdaptiveLoss
from d2x.engine.losses.loss_guard import LossGuard
from d2x.engine.losses.transform import LossTransform


def build_loss_transforms(cfg: CfgNode, model: nn.Module) -> list[LossTransform]:
    """What ``TrainStep`` applies to the loss dict, by ``ADAPTIVE_LOSS`` and ``SKIP_LOSS``.

    Raises:
        ValueError: both are enabled; adaptive losses are worth the same at every step, so none could be skipped.
    """
    adaptive, skip = cfg.ADAPTIVE_LOSS, cfg.SKIP_LOSS
    if adaptive.ENABLED and skip.ENABLED:
        raise ValueError("ADAPTIVE_LOSS.ENABLED and SKIP_LOSS.ENABLED exclude each other: choose one")
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if adaptive.ENABLED:
        return [
            AdaptiveLoss(
                targets=adaptive.TARGETS,
                min_loss=adaptive.MIN_LOSS,
                max_weight=adaptive.MAX_WEIGHT,
                parameters=parameters,
            )
        ]
    if skip.ENABLED:
        return [
            LossGuard(factor=skip.FACTOR, max_skips=skip.MAX_SKIPS, step_anyway=skip.STEP_ANYWAY, parameters=parameters)
        ]
    return []
