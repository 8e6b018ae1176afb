"""Backbones for every detector: importing the package registers them and declares their config keys."""

from d2x.backbones import small_resnet, swin_v1, swin_v2, timm, timm_vit, torchvision, vit
from d2x.backbones.config import add_backbone_config, forget_unread_factor
from d2x.config.keys import declare_keys

declare_keys(add_backbone_config, upgrade=forget_unread_factor)

__all__ = ["small_resnet", "swin_v1", "swin_v2", "timm", "timm_vit", "torchvision", "vit"]
