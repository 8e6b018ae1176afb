"""detectron2's FCOS from a config, and as a student."""

from centerx.fcos.build import add_fcos_config
from centerx.fcos.fcos import FCOSDetector
from centerx.fcos.student import DistilledFCOS

__all__ = ["DistilledFCOS", "FCOSDetector", "add_fcos_config"]
