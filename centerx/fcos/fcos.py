"""detectron2's FCOS (arXiv:1904.01355) from a config, and as a student of FCOS teachers.

CenterX's distillation asks of a detector only independent class logits per cell and some regressed channels, so FCOS
needs no losses of its own: per level, class logits take the place of the heatmap, the four distances that of the size,
centerness that of the offset.
"""

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.fcos import FCOS
from torch import Tensor

from centerx.fcos.build import build_parts
from d2x.engine.losses.normalizer import shared_normalizer

FCOSMaps = tuple[list[Tensor], list[Tensor], list[Tensor]]


@META_ARCH_REGISTRY.register()
class FCOSDetector(FCOS):
    """detectron2's FCOS, which has no config of its own, built from one; any backbone.

    The running mean of positives that its losses are divided by is part of the state dict here, so that a resumed run
    goes on with it, and it is that of all processes.
    """

    mean_positives: Tensor

    @configurable
    def __init__(self, **fcos):
        super().__init__(**fcos)
        self.register_buffer("mean_positives", torch.zeros((), dtype=torch.float64))  # 0: none yet

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        return build_parts(cfg)

    @property
    def strides(self) -> list[int]:
        """Of the levels, finest first."""
        return list(self.anchor_generator.strides)

    def _ema_update(self, name: str, value: float, initial_value: float, momentum: float = 0.9) -> float:
        shared = shared_normalizer(self.mean_positives.new_tensor(value)).double()
        old = torch.where(self.mean_positives == 0, initial_value, self.mean_positives)
        self.mean_positives.copy_(old * momentum + shared * (1 - momentum))
        return self.mean_positives.item()

    def predict(self, images: Tensor) -> FCOSMaps:
        """Normalised and padded images, (N, 3, H, W), to lists over the levels: class logits (N, K, Hi, Wi), distances
        in strides (N, 4, Hi, Wi) as (left, top, right, bottom), centerness logits (N, 1, Hi, Wi)."""
        features = self.backbone(images)
        return self.head([features[name] for name in self.head_in_features])
