"""What the trainer asks of FCOS: as CenterX's recipe, but for the class count."""

from centerx.fcos.distilled_fcos import add_fcos_config as add_config
from centerx.recipe import extra_hooks, param_groups, test_augmentations, train_augmentations

__all__ = [
    "CLASS_COUNT_KEY",
    "add_config",
    "extra_hooks",
    "param_groups",
    "test_augmentations",
    "train_augmentations",
]


CLASS_COUNT_KEY = "MODEL.FCOS.NUM_CLASSES"
