"""Settings that nothing reads: which keys of a config are read, noted while a run is set up."""

import copy
import fnmatch
from collections.abc import Iterable

from detectron2.config import CfgNode

from d2x.config.keys import flat_items, get_base_cfg

# Read before a trainer exists (by the tools, when data sets are registered) or only after it was made (evaluation).
READ_ELSEWHERE = (
    "VERSION",
    "OUTPUT_DIR",
    "SEED",
    "CUDNN_BENCHMARK",
    "PLUGINS",
    "DATASETS.*",
    "MODEL.META_ARCHITECTURE",
    "MODEL.WEIGHTS",
    "MODEL.DEVICE",
    "INPUT.FORMAT",
    "TEST.BATCH_SIZE",
    "TEST.COCO_EVAL",
    "TEST.DETECTIONS_PER_IMAGE",
    "TEST.EVAL_PERIOD",
    "TEST.EXPECTED_RESULTS",
    "TEST.FOLD",
)


class ReadKeys(set):
    """The dotted keys that were read; shared by a config and its copies."""

    def __deepcopy__(self, memo: dict) -> "ReadKeys":
        return self


class WatchedCfgNode(CfgNode):
    """A config that notes which of its settings are read as attributes (``cfg.SOLVER.BASE_LR``).

    Reading by item (``cfg.SOLVER["BASE_LR"]``) is not noted: so does code that looks at a setting for a check or a
    conversion, whether or not anything will use it.
    """

    def __getattr__(self, name: str):
        value = super().__getattr__(name)
        if "_read_keys" in self.__dict__ and not isinstance(value, CfgNode):
            self.__dict__["_read_keys"].add(self.__dict__["_prefix"] + name)
        return value


def watched(cfg: CfgNode) -> CfgNode:
    """A copy of a config, frozen if it is, that notes what is read of it; see ``unread_settings``."""
    return _watched(cfg, "", ReadKeys())


def _watched(cfg: CfgNode, prefix: str, read: ReadKeys) -> WatchedCfgNode:
    node = WatchedCfgNode()
    for key, value in cfg.items():
        child = _watched(value, f"{prefix}{key}.", read) if isinstance(value, CfgNode) else copy.deepcopy(value)
        dict.__setitem__(node, key, child)
    node.__dict__.update(copy.deepcopy(cfg.__dict__), _prefix=prefix, _read_keys=read)
    return node


def unread_settings(cfg: CfgNode, elsewhere: Iterable[str] = READ_ELSEWHERE) -> dict[str, object]:
    """Settings of a watched config that differ from their defaults and that nothing has read: key -> value.

    Args:
        cfg: made by ``watched``, or a copy of one.
        elsewhere: patterns of keys that are read by code that has not run yet.
    """
    read, defaults = cfg.__dict__["_read_keys"], dict(flat_items(get_base_cfg()))
    return {
        key: value
        for key, value in flat_items(cfg)
        if key not in read
        and _plain(defaults.get(key)) != _plain(value)
        and not any(fnmatch.fnmatchcase(key, pattern) for pattern in elsewhere)
    }


def _plain(value: object) -> object:
    """A list for a tuple: yaml knows no tuples."""
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
