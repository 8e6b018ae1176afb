"""Builder of a CenterNet's parts from a config: the only place that reads ``MODEL.CENTERNET``."""

from detectron2.config import CfgNode
from detectron2.modeling import build_backbone

from centerx.backbone import UpsampledBackbone
from centerx.dlaup_neck import DLAUpNeck
from centerx.features import select_features
from centerx.head import CenterHead
from centerx.losses import CenterLoss
from centerx.upsample_neck import UpsampleNeck
from d2x.errors import require_choice

NECKS = {"upsample": UpsampleNeck, "dlaup": DLAUpNeck}


def build_parts(cfg: CfgNode) -> dict:
    """The arguments of ``CenterNet``.

    Raises:
        ValueError: no class count, or see ``build_upsampled_backbone``.
    """
    node = cfg.MODEL.CENTERNET
    if node.NUM_CLASSES < 1:
        raise ValueError("MODEL.CENTERNET.NUM_CLASSES is 0: set it, or let d2x.data.prepare.prepare_data do so")
    backbone = build_upsampled_backbone(cfg)
    return {
        "backbone": backbone,
        "head": CenterHead(
            in_channels=backbone.neck.out_channels,
            hidden_channels=node.HEAD_CHANNELS,
            num_classes=node.NUM_CLASSES,
            class_specific_size=node.CLASS_SPECIFIC_SIZE,
            with_offset=node.OFFSET,
        ),
        "criterion": CenterLoss(
            heatmap=node.LOSS.HEATMAP,
            size=node.LOSS.SIZE,
            size_norm=node.LOSS.SIZE_NORM,
            unlabelled=node.LOSS.UNLABELLED,
            heatmap_weight=node.LOSS.HEATMAP_WEIGHT,
            size_weight=node.LOSS.SIZE_WEIGHT,
            offset_weight=node.LOSS.OFFSET_WEIGHT,
            min_probability=node.LOSS.MIN_PROBABILITY,
        ),
        "num_classes": node.NUM_CLASSES,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
        "min_overlap": node.TARGET.MIN_OVERLAP,
        "max_boxes": node.TARGET.MAX_BOXES,
        "max_detections": cfg.TEST.DETECTIONS_PER_IMAGE,
        "min_score": node.INFERENCE.MIN_SCORE,
        "batch_independent": node.INFERENCE.BATCH_INDEPENDENT,
        "centres_in_padding": node.INFERENCE.CENTRES_IN_PADDING,
        "clip_boxes": node.INFERENCE.CLIP_BOXES,
    }


def build_upsampled_backbone(cfg: CfgNode) -> UpsampledBackbone:
    """``MODEL.BACKBONE.NAME`` with the neck of ``MODEL.CENTERNET.NECK`` on it.

    Raises:
        ValueError: ``MODEL.CENTERNET.IN_FEATURES`` names an output that the backbone does not have, or see the neck.
    """
    node = cfg.MODEL.CENTERNET
    bottom_up = build_backbone(cfg)
    require_choice("MODEL.CENTERNET.NECK.NAME", node.NECK.NAME, NECKS)
    neck = NECKS[node.NECK.NAME](
        select_features(bottom_up.output_shape(), node.IN_FEATURES, "MODEL.CENTERNET.IN_FEATURES"),
        output_stride=node.OUTPUT_STRIDE,
        channels=node.NECK.CHANNELS,
        conv=node.NECK.CONV,
        up=node.NECK.UP,
        up_kernel=node.NECK.UP_KERNEL,
        up_init=node.NECK.UP_INIT,
        norm=node.NECK.NORM,
        **({"skip": node.NECK.SKIP} if node.NECK.NAME == "upsample" else {}),
    )
    return UpsampledBackbone(bottom_up, neck, output_stride=node.OUTPUT_STRIDE)
