"""Config keys of the recipe; RetinaNet's own are detectron2's."""

from detectron2.config import CfgNode


def add_config(cfg: CfgNode) -> None:
    cfg.TINY_RETINA = CfgNode()
    cfg.TINY_RETINA.FLIP = True
