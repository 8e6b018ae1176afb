"""What the trainer asks of Plain-DETR: augmentations, optimizer groups, class count."""

from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.engine import HookBase
from torch import nn

from d2x.backbones.layer_decay import param_groups_from_cfg
from d2x.backbones.weights import weight_hooks
from d2x.data.fast_resize import ResizeShortestEdge

__all__ = [
    "CLASS_COUNT_KEY",
    "extra_hooks",
    "param_groups",
    "test_augmentations",
    "train_augmentations",
]


CLASS_COUNT_KEY: str = "MODEL.PLAIN_DETR.NUM_CLASSES"


def train_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """DETR's: flip, half of the time resize and crop, then resize the shorter side to one of MIN_SIZE_TRAIN.

    ``INPUT.CROP``, detectron2's own, comes after the flip where it is enabled.
    """
    augmentations: list[T.Augmentation] = []
    if cfg.INPUT.RANDOM_FLIP != "none":
        vertical = cfg.INPUT.RANDOM_FLIP == "vertical"
        augmentations.append(T.RandomFlip(horizontal=not vertical, vertical=vertical))
    if cfg.INPUT.CROP.ENABLED:
        augmentations.append(T.RandomCrop(cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE))
    node = cfg.INPUT.PLAIN_DETR
    if node.CROP_PROBABILITY > 0:
        crop = [
            ResizeShortestEdge(node.CROP_RESIZE, sample_style="choice", fast=cfg.INPUT.FAST_RESIZE),
            T.RandomCrop("absolute_range", node.CROP_SIZE),
        ]
        augmentations.append(T.RandomApply(T.AugmentationList(crop), prob=node.CROP_PROBABILITY))
    sizes = cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
    return [*augmentations, ResizeShortestEdge(*sizes, fast=cfg.INPUT.FAST_RESIZE)]


def test_augmentations(cfg: CfgNode) -> list[T.Augmentation]:
    """Resize the shorter side to MIN_SIZE_TEST; none when it is 0."""
    if not cfg.INPUT.MIN_SIZE_TEST:
        return []
    return [T.ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)]


def param_groups(cfg: CfgNode, model: nn.Module) -> list[dict]:
    """Learning rate and weight decay of every parameter, see ``d2x.backbones.layer_decay``."""
    return param_groups_from_cfg(cfg, model)


def extra_hooks(cfg: CfgNode, model: nn.Module) -> list[HookBase]:
    """Loads ``MODEL.BACKBONE.WEIGHTS`` before training."""
    return weight_hooks(cfg, model)
