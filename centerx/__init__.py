"""CenterX for detectron2: importing the package registers its detectors."""

from d2x import missing_detectron2

if message := missing_detectron2(__name__):
    raise ImportError(message)

import d2x.backbones  # noqa: F401  (registers them)
from centerx import export
from centerx.centernet import CenterNet
from centerx.config import add_centerx_config
from centerx.distill.config import add_distill_config
from centerx.distill.distilled_centernet import DistilledCenterNet
from centerx.distill.recipe import DistillationRecipe
from centerx.fcos import DistilledFCOS, FCOSDetector, add_fcos_config
from centerx.recipe import CenterXRecipe
from d2x.config.keys import declare_keys
from d2x.detectors import register_detector

FCOS_CLASSES = "MODEL.FCOS.NUM_CLASSES"

declare_keys(add_distill_config)
register_detector("CenterNet", recipe=CenterXRecipe(), config=add_centerx_config, deployment=export)
register_detector("DistilledCenterNet", recipe=DistillationRecipe(), config=add_centerx_config, deployment=export)
register_detector("FCOSDetector", recipe=CenterXRecipe(FCOS_CLASSES), config=add_fcos_config)
register_detector("DistilledFCOS", recipe=DistillationRecipe(FCOS_CLASSES), config=add_fcos_config)

__all__ = ["CenterNet", "DistilledCenterNet", "DistilledFCOS", "FCOSDetector"]
