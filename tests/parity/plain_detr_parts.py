"""Parts of our Plain-DETR built from a golden case's options and loaded with its official weights."""

import math

import pytest
import torch
from torch import Tensor, nn

from plain_detr.box_coder import BoxCoder, DeltaCoder, SigmoidCoder
from plain_detr.box_position_bias import BoxRPB
from plain_detr.checkpoint_keys import convert
from plain_detr.criterion import LossWeights, SetCriterion
from plain_detr.decoder import Decoder
from plain_detr.decoder_layer import CrossAttention, DecoderLayer
from plain_detr.matcher import CostWeights, HungarianMatcher
from plain_detr.padding import FeatureGrid
from plain_detr.prediction_head import PredictionHead
from plain_detr.predictions import SetTargets
from plain_detr.proposals import Proposals
from plain_detr.queries import QueryInitializer
from tests.parity.golden import Golden

RELEASED_PADDING_LOGIT = -100.0
IMPLEMENTATIONS = ["chunked", "fused", "naive"]


def check(name: str, actual: Tensor, expected: Tensor, tolerance: dict) -> None:
    """Compare as the goldens' README says: ``rtol``/``atol``, or an ``atol`` relative to the largest value."""
    atol = tolerance.get("atol", 0.0)
    if "atol_relative_to_max" in tolerance and expected.numel():
        atol += tolerance["atol_relative_to_max"] * float(expected.abs().max())
    torch.testing.assert_close(
        actual.detach().float(), expected.float(), rtol=tolerance.get("rtol", 0.0), atol=atol, msg=lambda text: f"{name}: {text}"
    )


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
    return BoxRPB(
        num_heads=heads, hidden_dim=options["decoder_rpe_hidden_dim"], offsets=options["decoder_rpe_type"]
    )


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


def packed_targets(case: Golden, num_images: int, empty: int | None = None) -> SetTargets:
    """The case's targets, which are in coder space already; those of image ``empty`` left out."""
    inputs = case.group("input.targets")
    boxes, labels = [], []
    for index in range(num_images):
        keep = slice(0, 0) if index == empty else slice(None)
        boxes.append(inputs[f"{index}.boxes"][keep])
        labels.append(inputs[f"{index}.labels"][keep])
    return SetTargets.pack(boxes, labels)


def criterion_for(options: dict, *, cost: tuple[float, float, float], weights: tuple[float, float, float]) -> SetCriterion:
    coder = DeltaCoder() if options.get("cost_bbox_type") == "reparam" or options.get("reparam") else SigmoidCoder()
    alpha = options.get("focal_alpha", 0.25)
    matcher = HungarianMatcher(coder=coder, cost=CostWeights(*cost), alpha=0.25, released_pairing=True)
    return SetCriterion(matcher=matcher, coder=coder, weights=LossWeights(*weights), alpha=alpha)


def inverse_sigmoid_or_inf(boxes: Tensor, invalid: Tensor) -> Tensor:
    """The official form of normalised anchors: logits, +inf where invalid."""
    logit = torch.log(boxes / (1 - boxes))
    return logit.masked_fill(invalid[..., None], math.inf)


parametrize_implementations = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
