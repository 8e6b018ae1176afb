"""From a config to the finished parts of a Plain-DETR: the only place that reads ``MODEL.PLAIN_DETR``."""

from detectron2.config import CfgNode
from detectron2.modeling import build_backbone

from d2x.backbones.base import arguments
from plain_detr.box_coder import BOX_CODERS, BoxCoder
from plain_detr.criterion import SetCriterion
from plain_detr.decoder import Decoder
from plain_detr.decoder_layer import CrossAttention, DecoderLayer
from plain_detr.encoder import Encoder
from plain_detr.hybrid import QueryGroups
from plain_detr.matcher import HungarianMatcher
from plain_detr.modulation.base import Modulation
from plain_detr.modulation.box_rpb import BoxRPB
from plain_detr.prediction_head import PredictionHead
from plain_detr.proposals import Proposals, QueryInitializer
from plain_detr.rescale import InputProjection, rescale
from plain_detr.set_losses import LossWeights


def build_parts(cfg: CfgNode) -> dict:
    """The arguments of ``PlainDETR``.

    Raises:
        ValueError: a key has a value that is not among its choices, or ``IN_FEATURE`` is no output of the backbone.
    """
    node = cfg.MODEL.PLAIN_DETR
    backbone = build_backbone(cfg)
    shapes = backbone.output_shape()
    if node.IN_FEATURE not in shapes:
        raise ValueError(
            f"MODEL.PLAIN_DETR.IN_FEATURE '{node.IN_FEATURE}' is not an output of the backbone: {', '.join(shapes)}"
        )
    channels, stride = shapes[node.IN_FEATURE].channels, shapes[node.IN_FEATURE].stride
    assert channels is not None and stride is not None, "every backbone says what it gives"
    upsample = rescale(channels, stride, node.FEATURE_STRIDE, halve=True)
    coder = _choice("BOX_CODER", BOX_CODERS, node.BOX_CODER)(
        **({"anchor_size": node.PROPOSALS.ANCHOR_SIZE} if node.PROPOSALS.ANCHOR_SIZE else {})
    )
    groups = QueryGroups(node.NUM_QUERIES, node.ONE_TO_MANY.QUERIES, node.ONE_TO_MANY.REPEATS, node.ONE_TO_MANY.WEIGHT)
    encodings = {"sine": True, "sine_unnorm": False}
    return {
        "backbone": backbone,
        "in_feature": node.IN_FEATURE,
        "upsample": upsample,
        "input_projection": InputProjection(upsample.out_channels, node.HIDDEN_DIM),
        "encoder": _encoder(node),
        "normalize_position": _choice("POSITION_ENCODING", encodings, node.POSITION_ENCODING),
        "proposals": Proposals(
            hidden_dim=node.HIDDEN_DIM,
            stride=node.FEATURE_STRIDE,
            strides=node.PROPOSALS.STRIDES,
            head=PredictionHead(hidden_dim=node.HIDDEN_DIM, num_classes=node.NUM_CLASSES),
            coder=coder,
            valid_area=node.VALID_AREA,
            keep_invalid=node.KEEP_INVALID_PROPOSALS,
            class_aware=node.PROPOSALS.CLASS_AWARE,
        ),
        "queries": QueryInitializer(
            hidden_dim=node.HIDDEN_DIM,
            num_queries=groups.one_to_one + groups.one_to_many,
            mixed_selection=node.PROPOSALS.MIXED_SELECTION,
        ),
        "decoder": _decoder(node, coder),
        "coder": coder,
        "groups": groups,
        "criterion": _criterion(node, coder),
        "num_classes": node.NUM_CLASSES,
        "hidden_dim": node.HIDDEN_DIM,
        "topk": cfg.TEST.DETECTIONS_PER_IMAGE,
        "pixel_mean": tuple(cfg.MODEL.PIXEL_MEAN),
        "pixel_std": tuple(cfg.MODEL.PIXEL_STD),
        "batch_independent": node.BATCH_INDEPENDENT,
        "valid_area": node.VALID_AREA,
        "pad_multiple": node.PAD_MULTIPLE,
        "weight_settings": _weight_settings(node),
    }


def _choice(key: str, choices: dict, value: str):
    if value not in choices:
        raise ValueError(f"MODEL.PLAIN_DETR.{key} must be one of {', '.join(choices)}, got '{value}'")
    return choices[value]


def _weight_settings(node: CfgNode) -> dict[str, str]:
    settings = {
        "BOX_CODER": node.BOX_CODER,
        "POSITION_ENCODING": node.POSITION_ENCODING,
        "NORM_FIRST": node.NORM_FIRST,
        "FEATURE_STRIDE": node.FEATURE_STRIDE,
        "PROPOSALS.STRIDES": list(node.PROPOSALS.STRIDES),
        "BOX_RPB.KIND": node.BOX_RPB.KIND,
    }
    if node.BOX_RPB.KIND != "none":
        settings |= {"BOX_RPB.OFFSETS": node.BOX_RPB.OFFSETS, "BOX_RPB.CORNERS": node.BOX_RPB.CORNERS}
    return {key: str(value) for key, value in settings.items()}


def _layer(node: CfgNode) -> dict:
    """What layers of encoder and decoder have in common."""
    return {key.lower(): getattr(node, key) for key in ("HIDDEN_DIM", "NUM_HEADS", "FEEDFORWARD_DIM", "DROPOUT")}


def _encoder(node: CfgNode) -> Encoder | None:
    if not node.ENCODER.LAYERS:
        return None
    return Encoder(
        num_layers=node.ENCODER.LAYERS, window=node.ENCODER.WINDOW, norm_first=node.ENCODER.NORM_FIRST, **_layer(node)
    )


def _modulation(node: CfgNode) -> Modulation | None:
    """What a query's box adds to its cross-attention."""
    options = arguments(node.BOX_RPB)
    axial = _choice("BOX_RPB.KIND", {"none": None, "axial": True, "full": False}, options.pop("kind"))
    return None if axial is None else BoxRPB(num_heads=node.NUM_HEADS, axial=axial, **options)


def _decoder(node: CfgNode, coder: BoxCoder) -> Decoder:
    cross_attention = CrossAttention(
        hidden_dim=node.HIDDEN_DIM,
        num_heads=node.NUM_HEADS,
        box_rpb=_modulation(node),
        padding_value=node.PADDING_LOGIT,
        implementation=node.ATTENTION,
    )
    layer = DecoderLayer(cross_attention=cross_attention, norm_first=node.NORM_FIRST, **_layer(node))
    heads = [
        PredictionHead(hidden_dim=node.HIDDEN_DIM, num_classes=node.NUM_CLASSES) for _ in range(node.DECODER_LAYERS)
    ]
    return Decoder(
        layer=layer,
        heads=heads,
        coder=coder,
        look_forward_twice=node.LOOK_FORWARD_TWICE,
        activation_checkpoint=node.CHECKPOINT_DECODER,
        init_std=node.DECODER_INIT_STD,
    )


def _criterion(node: CfgNode, coder: BoxCoder) -> SetCriterion:
    matcher = HungarianMatcher(
        coder=coder,
        cost=LossWeights(node.MATCHER.CLASS_COST, node.MATCHER.BOX_COST, node.MATCHER.GIOU_COST),
        alpha=node.MATCHER.FOCAL_ALPHA,
        gamma=node.MATCHER.FOCAL_GAMMA,
        released_pairing=node.RELEASED_PAIRING,
    )
    weights = LossWeights(node.LOSS.CLASS_WEIGHT, node.LOSS.BOX_WEIGHT, node.LOSS.GIOU_WEIGHT)
    return SetCriterion(
        matcher=matcher, coder=coder, weights=weights, alpha=node.LOSS.FOCAL_ALPHA, gamma=node.LOSS.FOCAL_GAMMA
    )
