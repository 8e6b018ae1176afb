"""Preparation of a config's data sets: registered, the user's own put in place, the classes counted."""

import difflib

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2x.data.sets.builtin import register_builtin
from d2x.data.sets.coco_json import register_coco_json
from d2x.data.sets.shapes import register_shapes
from d2x.data.sets.sources import join_sources
from d2x.detectors import class_count, set_class_count


def prepare_data(cfg: CfgNode) -> CfgNode:
    """Register all data sets, put the user's own in place, and make the class count follow from the data.

    Returns:
        The same config, changed: ``DATASETS.TRAIN`` / ``TEST`` / ``CLASS_NAMES`` and the recipe's class count.

    Raises:
        ValueError: unknown data set name, data sets with different classes, or a class count in the config that
            contradicts the data.
        FileNotFoundError: a file or folder named in the config does not exist.
    """
    register_builtin()
    register_shapes()
    if cfg.DATASETS.TRAIN_JSON:
        cfg.DATASETS.TRAIN = (register_coco_json("user_train", cfg.DATASETS.TRAIN_JSON, cfg.DATASETS.TRAIN_IMAGES),)
    if cfg.DATASETS.VAL_JSON:
        cfg.DATASETS.TEST = (register_coco_json("user_val", cfg.DATASETS.VAL_JSON, cfg.DATASETS.VAL_IMAGES),)
    join_sources(cfg)
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    known = set(DatasetCatalog.list())
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise ValueError(f"DATASETS: unknown data set '{name}'{hint}")
    _resolve_classes(cfg, names)
    return cfg


def prepare_classes(cfg: CfgNode) -> CfgNode:
    """Make the class count follow from ``DATASETS.CLASS_NAMES`` (as saved with a run), without needing its data."""
    if not cfg.DATASETS.CLASS_NAMES:
        return prepare_data(cfg)
    _resolve_classes(cfg, ())
    return cfg


def class_names(cfg: CfgNode) -> list[str]:
    """The class names of a config as far as they are known without looking at any data set; else an empty list.

    They are ``DATASETS.CLASS_NAMES``, which every saved config has, or those of the registered data sets it names.
    """
    if cfg.DATASETS.CLASS_NAMES:
        return list(cfg.DATASETS.CLASS_NAMES)
    register_builtin()
    register_shapes()
    if any(cfg.DATASETS[key] for key in ("TRAIN_JSON", "VAL_JSON", "TRAIN_SOURCES", "VAL_SOURCES")):
        return []
    names = [name for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST) if name in DatasetCatalog]
    return next(
        (
            list(MetadataCatalog.get(name).thing_classes)
            for name in names
            if MetadataCatalog.get(name).get("thing_classes")
        ),
        [],
    )


def _resolve_classes(cfg: CfgNode, names: tuple[str, ...]) -> None:
    classes_of = {name: list(MetadataCatalog.get(name).get("thing_classes", [])) for name in names}
    classes, source = list(cfg.DATASETS.CLASS_NAMES), "DATASETS.CLASS_NAMES"
    for name, its_classes in classes_of.items():
        if not classes:
            classes, source = its_classes, f"data set '{name}'"
        elif its_classes and its_classes != classes:
            raise ValueError(f"data set '{name}' has classes {its_classes}, but {source} has {classes}")
    configured = class_count(cfg)
    if classes and configured not in (0, len(classes)):
        raise ValueError(
            f"the config says {configured} classes, but {source} has {len(classes)}: {', '.join(classes[:10])}"
            " (set the key to 0 to follow the data)"
        )
    if not classes and not configured:
        raise ValueError("no class count: neither the data sets nor the config give one")
    if classes:
        set_class_count(cfg, len(classes))
        cfg.DATASETS.CLASS_NAMES = classes
