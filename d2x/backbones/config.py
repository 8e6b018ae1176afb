"""Config keys of the backbones that both detectors can use."""

from detectron2.config import CfgNode

from d2x.backbones.small_resnet import add_small_resnet_config
from d2x.backbones.timm import add_timm_config
from d2x.backbones.torchvision import add_torchvision_config


def add_backbone_config(cfg: CfgNode) -> None:
    """Declare the keys; values are the defaults."""
    add_small_resnet_config(cfg)
    add_timm_config(cfg)
    add_torchvision_config(cfg)
