"""The recipe of students: CenterX's, and a hook that loads the teachers."""

import dataclasses

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import nn

from centerx.distill.student import DistillationHook, Student
from centerx.recipe import CenterXRecipe


@dataclasses.dataclass(frozen=True)
class DistillationRecipe(CenterXRecipe):
    """How ``DistilledCenterNet`` and ``DistilledFCOS`` are trained."""

    def extra_hooks(self, cfg: CfgNode, model: nn.Module) -> list[HookBase]:
        """Also loads and checks the teachers."""
        assert isinstance(model, Student)
        return [*super().extra_hooks(cfg, model), DistillationHook(model, warm_start=cfg.DISTILL.WARM_START)]
