"""From a yaml file and KEY VALUE pairs to a complete config, with every data set registered and classes counted."""

import difflib
import os
from collections.abc import Iterable

from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2x.backbones.config import add_backbone_config, forget_unread_factor
from d2x.config.keys import add_d2x_config
from d2x.config.values import require_values
from d2x.data.sets.builtin import register_builtin
from d2x.data.sets.coco_json import register_coco_json
from d2x.data.sets.shapes import register_shapes
from d2x.data.sets.sources import join_sources
from d2x.detectors import all_recipes, class_count, set_class_count


def get_base_cfg() -> CfgNode:
    """detectron2's defaults plus the keys of ``d2x`` and of every registered detector package."""
    cfg = get_cfg()
    add_d2x_config(cfg)
    add_backbone_config(cfg)
    for recipe in all_recipes():
        recipe.add_config(cfg)
    return cfg


def load_cfg(config_file: str | None = None, opts: Iterable[str] = ()) -> CfgNode:
    """Read a config file over the defaults, then ``KEY VALUE ...`` pairs over that.

    Raises:
        FileNotFoundError: the file (or one of its ``_BASE_`` files) does not exist.
        ValueError: unknown key (names the nearest known one), a value of the wrong type, or broken yaml.
    """
    cfg = get_base_cfg()
    known = set(_flat_keys(cfg))
    if config_file:
        if not os.path.isfile(config_file):
            raise FileNotFoundError(f"config file not found: {config_file}")
        try:
            cfg.merge_from_file(config_file, allow_unsafe=False)  # else tags in the yaml could run code
            forget_unread_factor(cfg, CfgNode.load_yaml_with_base(config_file))
        except KeyError as error:
            raise ValueError(f"{config_file}: {_unknown_key(cfg, error)}") from error
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{config_file}: its _BASE_ was not found: {error.filename}") from error
        except Exception as error:  # yaml, yacs and detectron2 raise anything for a text that is no config
            raise ValueError(f"{config_file}: not a config ({_in_words(error)})") from error
    opts = list(opts)
    flags = [word for word in opts[::2] if str(word).startswith("--")]
    if flags:
        raise ValueError(f"{flags[0]} must stand before the first KEY VALUE pair ({opts[0]})")
    if len(opts) % 2:
        raise ValueError(f"overrides must be KEY VALUE pairs, got an odd number of words: {' '.join(opts)}")
    try:
        cfg.merge_from_list(opts)
    except (KeyError, AssertionError) as error:
        raise ValueError(_unknown_key(cfg, error, [key for key in opts[::2]])) from error
    except Exception as error:  # python's parser, too, which reads the values
        raise ValueError(f"override {' '.join(map(str, opts))[:200]}: {_in_words(error)}") from error
    gone = sorted(known - set(_flat_keys(cfg)))
    if gone:  # a whole node was given as one value
        raise ValueError(f"overrides must name single keys, not a group of them: {gone[0]} would be lost")
    require_values(cfg, get_base_cfg())
    return cfg


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


def _resolve_classes(cfg: CfgNode, names: tuple[str, ...]) -> None:
    found = {name: list(MetadataCatalog.get(name).get("thing_classes", [])) for name in names}
    classes, source = list(cfg.DATASETS.CLASS_NAMES), "DATASETS.CLASS_NAMES"
    for name, its_classes in found.items():
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


def _unknown_key(cfg: CfgNode, error: Exception, candidates: Iterable[str] = ()) -> str:
    text = str(error).strip("'\"")
    known = list(_flat_keys(cfg))
    wanted = next((key for key in candidates if key not in known), text.split("Non-existent config key:")[-1].strip())
    near = difflib.get_close_matches(wanted, known, n=1, cutoff=0.6)
    return f"unknown config key '{wanted}'" + (f"; did you mean {near[0]}?" if near else "")


def _in_words(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _flat_keys(node: CfgNode, prefix: str = "") -> Iterable[str]:
    for key, value in node.items():
        yield prefix + key
        if isinstance(value, CfgNode):
            yield from _flat_keys(value, f"{prefix}{key}.")
