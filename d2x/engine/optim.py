"""Optimizers from config: SGD, Adam, AdamW, and clipping of the whole model's gradient norm."""

from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.solver.build import maybe_add_gradient_clipping, reduce_param_groups
from torch import nn

from d2x.errors import require_choice


def with_whole_model_clipping(optimizer: type[torch.optim.Optimizer], max_norm: float, norm_type: float) -> type:
    """A subclass of an optimizer that first clips the norm taken over all its parameters' gradients.

    Clipping belongs to the step: under mixed precision the gradients are still scaled in any hook before it.
    """

    class ClippedOptimizer(optimizer):
        def step(self, closure: Any = None) -> Any:
            parameters = [parameter for group in self.param_groups for parameter in group["params"]]
            nn.utils.clip_grad_norm_(parameters, max_norm, norm_type)
            return super().step(closure)

    ClippedOptimizer.__name__ = f"{optimizer.__name__}WithWholeModelClipping"
    return ClippedOptimizer


def build_optimizer(cfg: CfgNode, param_groups: list[dict]) -> torch.optim.Optimizer:
    """Build ``SOLVER.OPTIMIZER`` over finished groups ``[{"params": [...], "lr": ..., "weight_decay": ...}]``.

    Raises:
        ValueError: unknown ``SOLVER.OPTIMIZER``, or a limit of ``SOLVER.CLIP_GRADIENTS`` that is not positive.
    """
    solver = cfg.SOLVER
    choices = {"SGD": torch.optim.SGD, "Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}
    require_choice("SOLVER.OPTIMIZER", solver.OPTIMIZER, choices)
    optimizer: Any = choices[solver.OPTIMIZER]
    options: dict[str, Any] = {}
    if optimizer is torch.optim.SGD:
        options.update(momentum=solver.MOMENTUM, nesterov=solver.NESTEROV)
    else:
        options.update(betas=tuple(solver.BETAS))
    clip = solver.CLIP_GRADIENTS
    if clip.ENABLED and not (clip.CLIP_VALUE > 0 and clip.NORM_TYPE > 0):
        raise ValueError(
            f"SOLVER.CLIP_GRADIENTS: CLIP_VALUE and NORM_TYPE must be positive, got {clip.CLIP_VALUE}, {clip.NORM_TYPE}"
        )
    if clip.ENABLED and clip.WHOLE_MODEL:
        if clip.CLIP_TYPE != "norm":
            raise ValueError("SOLVER.CLIP_GRADIENTS.WHOLE_MODEL needs CLIP_TYPE 'norm'")
        optimizer = with_whole_model_clipping(optimizer, clip.CLIP_VALUE, clip.NORM_TYPE)
    else:
        optimizer = maybe_add_gradient_clipping(cfg, optimizer)
    options["fused"] = _fused(param_groups) or None  # None: torch's own choice
    return optimizer(reduce_param_groups(param_groups), lr=solver.BASE_LR, weight_decay=solver.WEIGHT_DECAY, **options)


def _fused(param_groups: list[dict]) -> bool:
    """Whether a step in one pass over each parameter pays and is safe.

    On the CPU it replaces a dozen passes. On a GPU torch's default is as good, and a fused optimizer would be handed
    gradients that are still scaled, which whole-model clipping must not see.
    """
    return all(parameter.device.type == "cpu" for group in param_groups for parameter in group["params"])
