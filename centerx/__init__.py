"""CenterX for detectron2: importing the package registers the models and their recipe."""

import importlib.util

if importlib.util.find_spec("detectron2") is None:
    raise ImportError("centerx needs detectron2, which is not installed here: run `./run.sh setup`")

from centerx import export, recipe
from centerx.centernet import CenterNet
from centerx.config import add_centerx_config
from centerx.distill.distilled_centernet import DistilledCenterNet
from centerx.fcos import recipe as fcos_recipe
from centerx.fcos.distilled_fcos import DistilledFCOS, FCOSDetector
from d2x.deploy.graph import register_deployment
from d2x.detectors import register_recipe

register_recipe("CenterNet", recipe)
register_recipe("DistilledCenterNet", recipe)
register_recipe("FCOSDetector", fcos_recipe)
register_recipe("DistilledFCOS", fcos_recipe)
register_deployment("CenterNet", export)
register_deployment("DistilledCenterNet", export)

__all__ = ["CenterNet", "DistilledCenterNet", "DistilledFCOS", "FCOSDetector", "add_centerx_config", "recipe"]
