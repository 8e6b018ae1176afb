"""What the trainer asks of a detector package, looked up by meta-architecture name.

A recipe is a module (or any object) with these names; the trainer has no ``if`` per model:

- ``add_config(cfg)``: declares the package's config keys.
- ``CLASS_COUNT_KEY``: the config key of the class count, whose 0 stands for the data set's.
- ``train_augmentations(cfg)`` / ``test_augmentations(cfg)``: lists of detectron2 augmentations.
- ``param_groups(cfg, model)``: optimizer groups, ``[{"params": [...], "lr": ..., "weight_decay": ...}]``.
- ``extra_hooks(cfg, trainer)``: hooks besides the trainer's own.
"""

from types import ModuleType

from detectron2.config import CfgNode

_RECIPES: dict[str, ModuleType] = {}


def register_recipe(meta_arch: str, recipe: ModuleType) -> None:
    """Tell the trainer which recipe serves ``MODEL.META_ARCHITECTURE == meta_arch``."""
    _RECIPES[meta_arch] = recipe


def get_recipe(meta_arch: str) -> ModuleType:
    """The recipe of a meta-architecture.

    Raises:
        ValueError: nothing was registered under that name.
    """
    if meta_arch not in _RECIPES:
        raise ValueError(f"MODEL.META_ARCHITECTURE '{meta_arch}' has no recipe; known: {', '.join(sorted(_RECIPES))}")
    return _RECIPES[meta_arch]


def all_recipes() -> list[ModuleType]:
    """Every registered recipe once, in order of registration."""
    return list(dict.fromkeys(_RECIPES.values()))


def class_count(cfg: CfgNode) -> int:
    """Class count in the config of its meta-architecture; 0 stands for the data set's."""
    parent, name = _class_count_node(cfg)
    return parent[name]


def set_class_count(cfg: CfgNode, count: int) -> None:
    """Write the class count."""
    parent, name = _class_count_node(cfg)
    parent[name] = count


def _class_count_node(cfg: CfgNode) -> tuple[CfgNode, str]:
    *path, name = get_recipe(cfg.MODEL.META_ARCHITECTURE).CLASS_COUNT_KEY.split(".")
    for part in path:
        cfg = cfg[part]
    return cfg, name
