"""Exported models: how they are made and run. Importing the package needs neither torch nor detectron2."""

from d2x.deploy.infer import Detections, Detector, load

__all__ = ["Detections", "Detector", "load"]
