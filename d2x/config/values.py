"""Validation of config values from which no run can be made, before anything is built."""

import math

from detectron2.config import CfgNode

from d2x.config.keys import flat_items

_TEXTS = ("DATASETS.TRAIN", "DATASETS.TEST", "DATASETS.CLASS_NAMES")
_AT_LEAST = {
    "SOLVER.IMS_PER_BATCH": 1,
    "SOLVER.MAX_ITER": 1,
    "SOLVER.CHECKPOINT_PERIOD": 1,
    "SOLVER.BASE_LR": 0,
    "SOLVER.WEIGHT_DECAY": 0,
    "SOLVER.WARMUP_ITERS": 0,
    "DATALOADER.NUM_WORKERS": 0,
    "TEST.EVAL_PERIOD": 0,
    "TEST.DETECTIONS_PER_IMAGE": 1,
}
_SIDES = ("INPUT.MIN_SIZE_TRAIN", "INPUT.MAX_SIZE_TRAIN", "INPUT.MIN_SIZE_TEST", "INPUT.MAX_SIZE_TEST")
_THREE_NUMBERS = ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD")


def require_values(cfg: CfgNode, defaults: CfgNode) -> None:
    """
    Args:
        defaults: the same keys; one that has a value there must have one.

    Raises:
        ValueError: names the key and what it must be.
    """
    given = dict(flat_items(cfg))
    for key, default in flat_items(defaults):
        if given.get(key) is None and default is not None:
            raise ValueError(f"{key} must be a {type(default).__name__}, got nothing")
        if default is None and not _is_optional_number(given[key]):
            raise ValueError(f"{key} must be a number, or None, got {_shown(given[key])}")
    for key in _TEXTS:
        if not all(isinstance(value, str) for value in given[key]):
            raise ValueError(f"{key} must be names, got {_shown(given[key])}")
    for key, least in _AT_LEAST.items():
        if not (math.isfinite(given[key]) and given[key] >= least):
            raise ValueError(f"{key} must be at least {least}, got {_shown(given[key])}")
    for key in _SIDES:
        sides = given[key] if isinstance(given[key], (list, tuple)) else [given[key]]
        if not sides or not all(isinstance(side, int) and side >= 0 for side in sides):
            raise ValueError(f"{key} must be whole numbers of pixels, got {_shown(given[key])}")
    for key in _THREE_NUMBERS:
        if not given[key] or not all(isinstance(value, (int, float)) and math.isfinite(value) for value in given[key]):
            raise ValueError(f"{key} must be a number for each channel, got {_shown(given[key])}")


def _is_optional_number(value: object) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value))


def _shown(value: object) -> str:
    return str(value)[:100]
