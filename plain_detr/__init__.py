"""Plain-DETR for detectron2: importing the package registers the detector."""

from d2x import missing_detectron2

if message := missing_detectron2(__name__):
    raise ImportError(message)

import d2x.backbones  # noqa: F401  (registers them)
from d2x.detectors import register_detector
from plain_detr import export, recipe
from plain_detr.config import add_plain_detr_config
from plain_detr.plain_detr import PlainDETR

register_detector("PlainDETR", recipe=recipe, config=add_plain_detr_config, deployment=export)

__all__ = ["PlainDETR", "add_plain_detr_config"]
