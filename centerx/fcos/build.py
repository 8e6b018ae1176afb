"""Config keys of FCOS, and the builder of its parts: the only place that reads ``MODEL.FCOS``."""

import math

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone import FPN
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.meta_arch.fcos import FCOSHead

from centerx.features import finest_first, select_features


def add_fcos_config(cfg: CfgNode) -> None:
    """Declare ``MODEL.FCOS.*``."""
    if "FCOS" in cfg.MODEL:
        return
    node = cfg.MODEL.FCOS = CfgNode()
    node.NUM_CLASSES = 0  # 0: follow the data set
    # Channels of a feature pyramid to put on the backbone's outputs, plus one coarser level; 0: the backbone is one.
    node.FPN_CHANNELS = 64
    node.IN_FEATURES = []  # levels that the head reads; empty: all
    node.HEAD_CONVS = [64, 64]  # channels of the 3x3 convolutions of each branch of the head
    node.NORM = "GN"  # of pyramid and head
    node.CENTER_RADIUS = 1.5  # cells around an object's centre that are positive
    node.SCORE_THRESH = 0.05
    node.NMS_THRESH = 0.6
    node.CANDIDATES = 1000  # per level before NMS


def build_parts(cfg: CfgNode) -> dict:
    """The arguments of detectron2's ``FCOS``.

    Raises:
        ValueError: no class count, or ``MODEL.FCOS.IN_FEATURES`` names a level that is not there.
    """
    node = cfg.MODEL.FCOS
    if node.NUM_CLASSES < 1:
        raise ValueError("MODEL.FCOS.NUM_CLASSES is 0: set it, or let d2x.data.prepare.prepare_data do so")
    backbone = build_backbone(cfg)
    if node.FPN_CHANNELS:
        features = finest_first(backbone.output_shape())
        coarser = LastLevelMaxPool()
        coarser.in_feature = f"p{int(math.log2(features[-1].stride))}"
        names = [feature.name for feature in features]
        backbone = FPN(backbone, names, node.FPN_CHANNELS, norm=node.NORM, top_block=coarser)
    levels = finest_first(select_features(backbone.output_shape(), node.IN_FEATURES, "MODEL.FCOS.IN_FEATURES"))
    return {
        "backbone": backbone,
        "head": FCOSHead(
            input_shape=[ShapeSpec(channels=level.channels, stride=level.stride) for level in levels],
            num_classes=node.NUM_CLASSES,
            conv_dims=list(node.HEAD_CONVS),
            norm=node.NORM,
        ),
        "head_in_features": [level.name for level in levels],
        "num_classes": node.NUM_CLASSES,
        "center_sampling_radius": node.CENTER_RADIUS,
        "test_score_thresh": node.SCORE_THRESH,
        "test_topk_candidates": node.CANDIDATES,
        "test_nms_thresh": node.NMS_THRESH,
        "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
    }
