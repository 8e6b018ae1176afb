"""A convolutional detector as a faster copy for inference: batch norms folded, maps in channels-last order."""

import copy
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from d2x.deploy.fold import fold_batch_norms


def for_inference(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """The model in evaluation mode or, with ``TEST.FOLD``, a folded copy of it; its weights are loaded already.

    Raises:
        ValueError: ``TEST.FOLD`` with a model that has no ``backbone``.
        RuntimeError: see ``fold_batch_norms``.
    """
    model = model.eval()
    if not cfg.TEST.FOLD:
        return model
    if not hasattr(model, "backbone"):
        raise ValueError(f"TEST.FOLD: {cfg.MODEL.META_ARCHITECTURE} has no backbone whose batch norms could be folded")
    return fold_for_inference(model)


def fold_for_inference(model: nn.Module, hw: tuple[int, int] = (128, 160)) -> nn.Module:
    """A copy of a detector that computes the same with fewer layers; for inference only.

    Args:
        model: in evaluation mode; its ``backbone`` gives a dict of maps.
        hw: (height, width) of an example that the backbone is run with, rounded up to what it takes.

    Raises:
        ValueError: the model is in training mode.
        RuntimeError: see ``fold_batch_norms``.
    """
    if model.training:
        raise ValueError("batch norms can be folded in evaluation mode only: call model.eval() first")
    model = copy.deepcopy(model)
    multiple = max(model.backbone.size_divisibility, 1)
    device = next(model.parameters()).device
    example = torch.randn(1, 3, *(-(-side // multiple) * multiple for side in hw), device=device)

    def run() -> Sequence[Tensor]:
        with torch.no_grad():
            return list(model.backbone(example).values())

    fold_batch_norms(model.backbone, run)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.to(memory_format=torch.channels_last)
