"""A detector of somebody else: detectron2's RetinaNet, made known to the tools without changing a file of them."""

from d2x.detectors import register_detector
from tiny_retina import recipe
from tiny_retina.config import add_config

register_detector("RetinaNet", recipe=recipe, config=add_config)
