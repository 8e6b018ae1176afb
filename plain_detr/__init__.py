"""Plain-DETR for detectron2: importing the package registers the model, its backbones and its recipe."""

from d2x.backbones import swin_v1, swin_v2, timm_vit, vit
from d2x.deploy.graph import register_deployment
from d2x.detectors import register_recipe
from plain_detr import export, recipe
from plain_detr.config import add_plain_detr_config
from plain_detr.plain_detr import PlainDETR

register_recipe("PlainDETR", recipe)
register_deployment("PlainDETR", export)

__all__ = ["PlainDETR", "add_plain_detr_config", "recipe", "swin_v1", "swin_v2", "timm_vit", "vit"]
