"""Data sets that know different classes, named in the config, joined for training and kept apart for evaluation."""

import hashlib
import json
import os
from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2x.data.sets.coco_json import register_coco_json
from d2x.data.sets.merged import register_image_folder, register_merged


def join_sources(cfg: CfgNode) -> None:
    """Register ``DATASETS.TRAIN_SOURCES`` as one training set and each of ``VAL_SOURCES`` as a test set of its own.

    A source is the name of a registered data set, a [COCO json, image folder] pair, or a folder of unlabelled images.
    All get one class list: ``DATASETS.CLASS_NAMES``, or if that is empty the union in order of appearance (with
    that of ``DATASETS.TEST``, if no validation sources are given). Training images carry which of them
    their source is labelled for. A test set is scored on its own classes alone.

    Changes ``DATASETS.TRAIN``, ``TEST`` and ``CLASS_NAMES``.

    Raises:
        FileNotFoundError, ValueError: a source does not exist, or none of them names a class.
    """
    train = [register_source(source) for source in cfg.DATASETS.TRAIN_SOURCES]
    val = [register_source(source) for source in cfg.DATASETS.VAL_SOURCES]
    if not train and not val:
        return
    classes = list(cfg.DATASETS.CLASS_NAMES)
    if not classes:
        test = [] if val else [name for name in cfg.DATASETS.TEST if name in DatasetCatalog]
        classes = list(dict.fromkeys(kind for name in train + val + test for kind in _classes(name)))
    if not classes:
        raise ValueError("DATASETS.TRAIN_SOURCES have no labels, so DATASETS.CLASS_NAMES must say the classes")
    if train:
        cfg.DATASETS.TRAIN = (_merged(train, classes),)
    if val:
        cfg.DATASETS.TEST = tuple(_merged([name], classes) for name in val)
    cfg.DATASETS.CLASS_NAMES = classes


def register_source(source: str | Sequence[str]) -> str:
    """Register one source of ``join_sources``; returns the name of the data set."""
    if not isinstance(source, str):
        if not isinstance(source, (list, tuple)) or len(source) != 2 or not all(isinstance(s, str) for s in source):
            raise ValueError(f"DATASETS: a source must be a name, a folder or [json, image folder], got {source}")
        return register_coco_json(f"{_stem(source[0])}_{_hash(source)}", *source)
    if source in DatasetCatalog:
        return source
    if not os.path.isdir(source):
        raise FileNotFoundError(f"DATASETS: '{source}' is neither a registered data set nor a folder of images")
    return register_image_folder(f"{_stem(source)}_{_hash(source)}", source)


def _merged(names: Sequence[str], classes: Sequence[str]) -> str:
    merged = register_merged(f"{'+'.join(names)}_{_hash([names, classes])}", names, classes)
    labelled = {classes.index(kind) for name in names for kind in _labelled(name) if kind in classes}
    MetadataCatalog.get(merged).labelled_classes = sorted(labelled)
    return merged


def _classes(name: str) -> list[str]:
    return list(MetadataCatalog.get(name).get("thing_classes", []))


def _labelled(name: str) -> list[str]:
    labelled = MetadataCatalog.get(name).get("labelled_classes")
    return _classes(name) if labelled is None else [_classes(name)[index] for index in labelled]


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(os.path.normpath(path)))[0]


def _hash(content) -> str:
    return hashlib.sha256(json.dumps(content, default=list).encode()).hexdigest()[:8]
