"""What the trainer asks of FCOS: as CenterX's recipe, but for the class count."""

from detectron2.config import CfgNode

from centerx.distilled_fcos import add_fcos_config as add_config
from centerx.recipe import extra_hooks, param_groups, test_augmentations, train_augmentations

__all__ = [
    "add_config",
    "extra_hooks",
    "num_classes",
    "param_groups",
    "set_num_classes",
    "test_augmentations",
    "train_augmentations",
]


def num_classes(cfg: CfgNode) -> int:
    """Class count in the config; 0 stands for the data set's."""
    return cfg.MODEL.FCOS.NUM_CLASSES


def set_num_classes(cfg: CfgNode, count: int) -> None:
    """Write the class count."""
    cfg.MODEL.FCOS.NUM_CLASSES = count
