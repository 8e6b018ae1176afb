"""Parts of our Plain-DETR built from a golden case's options and loaded with its official weights."""

import contextlib
import math

import pytest
import torch
from detectron2.config import CfgNode
from torch import Tensor, nn
from torch.nn import functional as F

from d2x.backbones.swin_v2 import SwinV2
from d2x.config.keys import get_base_cfg
from plain_detr.box_coder import BoxCoder, DeltaCoder, SigmoidCoder
from plain_detr.checkpoint_keys import convert
from plain_detr.criterion import LossWeights, SetCriterion
from plain_detr.decoder import Decoder
from plain_detr.decoder_layer import CrossAttention, DecoderLayer
from plain_detr.hybrid import QueryGroups
from plain_detr.matcher import HungarianMatcher
from plain_detr.modulation.box_rpb import BoxRPB
from plain_detr.padding import FeatureGrid
from plain_detr.prediction_head import PredictionHead
from plain_detr.predictions import BoxSetPrediction, SetTargets
from plain_detr.proposals import Proposals, QueryInitializer
from tests.parity.golden import Golden

RELEASED_PADDING_LOGIT = -100.0
IMPLEMENTATIONS = ["chunked", "cpp", "fused", "naive"]


def check(name: str, actual: Tensor, expected: Tensor, tolerance: dict) -> None:
    """Compare as the goldens' README says: ``rtol``/``atol``, or an ``atol`` relative to the largest value."""
    atol = tolerance.get("atol", 0.0)
    if "atol_relative_to_max" in tolerance and expected.numel():
        atol += tolerance["atol_relative_to_max"] * float(expected.abs().max())
    actual, rtol = actual.detach().float(), tolerance.get("rtol", 0.0)
    torch.testing.assert_close(actual, expected.float(), rtol=rtol, atol=atol, msg=lambda text: f"{name}: {text}")


def check_gradient(case: Golden, name: str, actual: Tensor) -> None:
    """Compare a gradient that the case stores under ``name``, no closer than float32 knows it.

    The json tells by how much each gradient moved when all weights did by a rounding. One that is a sum of terms which
    cancel (the keys' bias: all of them; a part of a bias network's, under logits of hundreds) is known no better than
    that however small it is, and our sums have another order. Differences "of this order", so up to ten times, pass.
    """
    tolerance = dict(case.info["tolerance"]["grad"])
    moved, _ = case.info["float32_sensitivity"]["values"].get(name, (0.0, 0.0))
    tolerance["atol"] = max(tolerance["atol"], 10 * moved)
    check(name, actual, case.tensors[name], tolerance)


def coder_for(options: dict) -> BoxCoder:
    return DeltaCoder() if options["reparam"] else SigmoidCoder()


def grid_from_mask(mask: Tensor, stride: int) -> FeatureGrid:
    """The grid of an official (N, Hf, Wf) mask by the released rule."""
    hw = tuple(mask.shape[1:])
    valid = [(int((~one[:, 0]).sum()), int((~one[0]).sum())) for one in mask]
    return FeatureGrid(stride, hw, [hw] * len(mask), valid, [(h * stride, w * stride) for h, w in valid])


def box_rpb_for(options: dict, heads: int) -> BoxRPB | None:
    if options["decoder_type"] == "global_ape":
        return None
    assert options["decoder_type"] == "global_rpe_decomp"
    return BoxRPB(num_heads=heads, hidden_dim=options["decoder_rpe_hidden_dim"], offsets=options["decoder_rpe_type"])


def decoder_for(options: dict, coder: BoxCoder, implementation: str = "auto", **changes) -> Decoder:
    dim, heads = options["hidden_dim"], options["nheads"]
    cross_attention = CrossAttention(
        hidden_dim=dim,
        num_heads=heads,
        box_rpb=box_rpb_for(options, heads),
        padding_value=RELEASED_PADDING_LOGIT,
        implementation=implementation,
    )
    layer = DecoderLayer(
        hidden_dim=dim,
        num_heads=heads,
        feedforward_dim=options["dim_feedforward"],
        cross_attention=cross_attention,
        dropout=options["dropout"],
        norm_first=options["norm_type"] == "pre_norm",
    )
    heads = [PredictionHead(hidden_dim=dim, num_classes=options["num_classes"]) for _ in range(options["dec_layers"])]
    settings = {"look_forward_twice": options["look_forward_twice"], **changes}
    return Decoder(layer=layer, heads=heads, coder=coder, **settings)


def proposals_for(options: dict, coder: BoxCoder) -> Proposals:
    if options.get("proposal_min_size"):
        coder.anchor_size = float(options["proposal_min_size"])
    strides = options["proposal_tgt_strides"]
    if options["proposal_feature_levels"] == 1:
        strides = strides[:1]
    return Proposals(
        hidden_dim=options["hidden_dim"],
        stride=options["proposal_in_stride"],
        strides=strides,
        head=PredictionHead(hidden_dim=options["hidden_dim"], num_classes=options["num_classes"]),
        coder=coder,
        valid_area="nearest",
        keep_invalid=True,
    )


def queries_for(options: dict) -> QueryInitializer:
    return QueryInitializer(
        hidden_dim=options["hidden_dim"],
        num_queries=options["num_queries_one2one"] + options["num_queries_one2many"],
        mixed_selection=options["mixed_selection"],
    )


def official_names(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Name a part's weights as in the whole official model; heads inside it lose the prefix."""
    return {
        name if name.startswith(("class_embed.", "bbox_embed.")) else prefix + name: value
        for name, value in state.items()
    }


def load_official(model: nn.Module, state: dict[str, Tensor], *, allow_unused: tuple[str, ...] = ()) -> None:
    """Convert a whole-model official state dict and load it; every weight of ours must come from it.

    Args:
        allow_unused: prefixes of our names that the official state may have and the model not.
    """
    conversion = convert(state)
    assert not conversion.unmatched, f"no rule for {conversion.unmatched}"
    result = model.load_state_dict(conversion.state, strict=False)
    assert not result.missing_keys, result.missing_keys
    unused = [name for name in result.unexpected_keys if not name.startswith(allow_unused)]
    assert not unused, unused


def our_name(official: str, state: dict[str, Tensor]) -> str:
    """Our name of one official parameter of ``state``."""
    return convert(state).renamed[official]


@contextlib.contextmanager
def recorded(module: nn.Module):
    """A list that collects every output of ``module`` while the context is open."""
    outputs: list[Tensor] = []
    handle = module.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    try:
        yield outputs
    finally:
        handle.remove()


def refined_boxes(layers: list[BoxSetPrediction], coder: BoxCoder, extent: Tensor) -> Tensor:
    """(D, N, Q, 4), the official ``inter_references``: each layer's boxes refined from detached ones."""
    return torch.stack([coder.decode(layer.reference.detach(), layer.raw, extent) for layer in layers])


def groups_from_mask(mask: Tensor) -> list[int]:
    """Sizes of the query groups that an official (Q, Q) mask keeps apart."""
    first = int((~mask[0]).sum())
    return [size for size in (first, len(mask) - first) if size]


def padded_batch(images: list[Tensor]) -> Tensor:
    """(N, 3, H, W): zeros at the bottom and right up to the largest sides."""
    height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
    return torch.stack([F.pad(one, (0, width - one.shape[2], 0, height - one.shape[1])) for one in images])


def swin_for(options: dict) -> SwinV2:
    options = dict(options)
    return SwinV2(
        pretrained_window_sizes=options.pop("pretrained_window_size"),
        out_features=[f"p{index + 2}" for index in options.pop("out_indices")],
        shift_mask_value=RELEASED_PADDING_LOGIT,
        **options,
    ).eval()


def groups_for(options: dict) -> QueryGroups:
    return QueryGroups(
        options["num_queries_one2one"],
        options["num_queries_one2many"],
        options["k_one2many"],
        options["lambda_one2many"],
    )


def released_config(options: dict) -> CfgNode:
    """The config of a whole official model, with every released quirk switched on."""
    cfg = get_base_cfg()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.META_ARCHITECTURE = "PlainDETR"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [0.0] * 3, [1.0] * 3  # the cases' images are normalised already
    cfg.MODEL.BACKBONE.NAME = "build_swin_v2_backbone"
    swin = options["swin"]
    for key in ("embed_dim", "depths", "num_heads", "window_size", "global_blocks"):
        cfg.MODEL.SWIN_V2[key.upper()] = swin[key]
    cfg.MODEL.SWIN_V2.PRETRAINED_WINDOW_SIZES = swin["pretrained_window_size"]
    cfg.MODEL.SWIN_V2.OUT_FEATURES = [f"p{index + 2}" for index in swin["out_indices"]]
    cfg.MODEL.SWIN_V2.DROP_PATH = 0.0
    cfg.MODEL.SWIN_V2.RELEASED_SHIFT_MASK = True
    node = cfg.MODEL.PLAIN_DETR
    node.NUM_CLASSES = options["num_classes"]
    node.IN_FEATURE = cfg.MODEL.SWIN_V2.OUT_FEATURES[-1]
    node.FEATURE_STRIDE = options["proposal_in_stride"]
    node.HIDDEN_DIM, node.NUM_HEADS = options["hidden_dim"], options["nheads"]
    node.FEEDFORWARD_DIM, node.DROPOUT = options["dim_feedforward"], options["dropout"]
    node.NORM_FIRST = options["norm_type"] == "pre_norm"
    node.DECODER_LAYERS = options["dec_layers"]
    node.POSITION_ENCODING = options["position_embedding"]
    node.BOX_CODER = "delta" if options["reparam"] else "sigmoid"
    node.LOOK_FORWARD_TWICE = options["look_forward_twice"]
    node.BOX_RPB.KIND = {"global_ape": "none", "global_rpe_decomp": "axial"}[options["decoder_type"]]
    node.BOX_RPB.OFFSETS = options["decoder_rpe_type"]
    node.BOX_RPB.HIDDEN_DIM = options["decoder_rpe_hidden_dim"]
    node.NUM_QUERIES = options["num_queries_one2one"]
    node.ONE_TO_MANY.QUERIES = options["num_queries_one2many"]
    node.ONE_TO_MANY.REPEATS, node.ONE_TO_MANY.WEIGHT = options["k_one2many"], options["lambda_one2many"]
    node.PROPOSALS.STRIDES = options["proposal_tgt_strides"][: options["proposal_feature_levels"]]
    node.PROPOSALS.ANCHOR_SIZE = float(options.get("proposal_min_size", 0)) if options["reparam"] else 0.0
    node.PROPOSALS.MIXED_SELECTION = options["mixed_selection"]
    node.LOSS.CLASS_WEIGHT, node.LOSS.BOX_WEIGHT = options["cls_loss_coef"], options["bbox_loss_coef"]
    node.LOSS.GIOU_WEIGHT, node.LOSS.FOCAL_ALPHA = options["giou_loss_coef"], options["focal_alpha"]
    node.MATCHER.CLASS_COST, node.MATCHER.BOX_COST = options["set_cost_class"], options["set_cost_bbox"]
    node.MATCHER.GIOU_COST = options["set_cost_giou"]
    node.BATCH_INDEPENDENT, node.VALID_AREA = False, "nearest"
    node.KEEP_INVALID_PROPOSALS, node.PADDING_LOGIT, node.RELEASED_PAIRING = True, RELEASED_PADDING_LOGIT, True
    cfg.TEST.DETECTIONS_PER_IMAGE = options["topk"]
    return cfg


def inverse_sigmoid_or_inf(boxes: Tensor, invalid: Tensor) -> Tensor:
    """The official form of normalised anchors: logits, +inf where invalid."""
    return torch.logit(boxes).masked_fill(invalid[..., None], math.inf)


def packed_targets(case: Golden, num_images: int, empty: int | None = None) -> SetTargets:
    """The case's targets, which are in coder space already; those of image ``empty`` left out."""
    inputs = case.group("input.targets")
    boxes, labels = [], []
    for index in range(num_images):
        keep = slice(0, 0) if index == empty else slice(None)
        boxes.append(inputs[f"{index}.boxes"][keep])
        labels.append(inputs[f"{index}.labels"][keep])
    return SetTargets.pack(boxes, labels)


def coder_of_loss(options: dict) -> BoxCoder:
    assert options["cost_bbox_type"] in ("l1", "reparam")
    return DeltaCoder() if options["cost_bbox_type"] == "reparam" else SigmoidCoder()


def criterion_for(options: dict, *, cost: LossWeights, weights: LossWeights) -> SetCriterion:
    coder, alpha = coder_of_loss(options), options.get("focal_alpha", 0.25)
    matcher = HungarianMatcher(coder=coder, cost=cost, alpha=0.25, released_pairing=True)
    return SetCriterion(matcher=matcher, coder=coder, weights=weights, alpha=alpha)


parametrize_implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
