"""Proposals, their selection, and the whole released transformer behind them."""

import pytest
import torch
from torch import nn

from plain_detr.decoder import DecoderInputs
from plain_detr.position_encoding import box_code, grid_code
from tests.parity.golden import cases, load
from tests.parity.plain_detr_parts import (
    check,
    coder_for,
    decoder_for,
    grid_from_mask,
    groups_from_mask,
    inverse_sigmoid_or_inf,
    load_official,
    official_names,
    proposals_for,
    queries_for,
    recorded,
    refined_boxes,
)

CPU = torch.device("cpu")


def build(case):
    options = case.info["options"]
    coder = coder_for(options)
    transformer = nn.ModuleDict(
        {
            "proposals": proposals_for(options, coder),
            "queries": queries_for(options),
            "decoder": decoder_for(options, coder),
        }
    )
    transformer.level_embed = nn.Parameter(torch.zeros(1, options["hidden_dim"]))
    state = official_names(case.state, "transformer.")
    if options["mixed_selection"]:
        state["query_embed.weight"] = case.tensors["input.query_embed"]
    load_official(transformer, state)
    return transformer, coder


@torch.no_grad()
@pytest.mark.parametrize("name", cases("plain_detr", "proposals"))
def test_anchors_scores_and_levels_equal_the_released_ones(name):
    case = load("plain_detr", name)
    options, tolerance, given = case.info["options"], case.info["tolerance"], case.group("input")
    wanted, step = case.group("output"), options["token_stride"]
    transformer, coder = build(case)
    proposals, grid = transformer["proposals"], grid_from_mask(given["mask"], options["proposal_in_stride"])
    tokens, levels = proposals.expand(given["src"], grid)
    anchors, valid = coder.anchors(levels, CPU)
    with recorded(proposals.output_norm) as normed:
        selection = proposals(given["src"], grid, len(given["self_attn_mask"]), all_predictions=True)
    found = selection.prediction
    score = found.logits[..., 0].sort(dim=1, descending=True).values
    width_height = torch.tensor(grid.valid).flip(1)[:, None] / torch.tensor(grid.hw).flip(0)
    ours = {
        "expanded_memory": (tokens, "output"),
        "output_memory": (normed[0], "output"),
        "enc_outputs_class": (found.logits, "output"),
        "sorted_class0_logits": (score[:, : wanted["sorted_class0_logits"].shape[1]], "output"),
        "valid_ratios": (width_height, "output"),
    }
    if options["reparam"]:
        ours["output_proposals"] = found.reference, "boxes"
        ours["enc_outputs_delta"] = found.raw, "output"
        ours["enc_outputs_coord_unact"] = found.boxes, "boxes"
    else:
        ours["output_proposals"] = inverse_sigmoid_or_inf(anchors, ~valid), "output"
        ours["enc_outputs_coord_unact"] = found.raw + inverse_sigmoid_or_inf(anchors, ~valid), "output"
    for key, (value, kind) in ours.items():
        if f"{key}_subset" in wanted:
            every = 5 * step if key.endswith("memory") else step
            check(key, value[:, ::every], wanted[f"{key}_subset"], tolerance[kind])
        elif key in wanted:
            check(key, value, wanted[key], tolerance[kind])
    if "expanded_shapes" in wanted:
        assert [list(level.hw) for level in levels] == wanted["expanded_shapes"].tolist()
    if "expanded_mask" in wanted:
        padding = torch.cat([level.padding(CPU).flatten(1) for level in levels], dim=1)
        assert torch.equal(padding, wanted["expanded_mask"])
    if "max_shape_w" in wanted:
        assert torch.equal(selection.extent, torch.cat([wanted["max_shape_w"], wanted["max_shape_h"]], dim=-1).float())
    boxes = wanted.get("enc_outputs_coord_unact", wanted.get("enc_outputs_coord_unact_subset"))
    if not options["reparam"]:
        every = step if "enc_outputs_coord_unact_subset" in wanted else 1
        check("boxes", found.boxes[:, ::every], boxes.sigmoid(), tolerance["boxes"])


@torch.no_grad()
@pytest.mark.parametrize("all_predictions", [True, False])
@pytest.mark.parametrize("name", cases("plain_detr", "proposals"))
def test_selection_and_decoder_equal_the_released_ones(name, all_predictions):
    case = load("plain_detr", name)
    options, tolerance, given = case.info["options"], case.info["tolerance"], case.group("input")
    wanted = case.group("output")
    transformer, coder = build(case)
    grid = grid_from_mask(given["mask"], options["proposal_in_stride"])
    groups = groups_from_mask(given["self_attn_mask"])
    selection = transformer["proposals"](given["src"], grid, sum(groups), all_predictions=all_predictions)
    if tolerance["integers"] == "exact":
        assert torch.equal(selection.index, wanted["topk_proposals"])
    check("boxes", selection.reference, wanted["reference_points"], tolerance["boxes"])
    code = box_code(selection.reference, 2 * options["hidden_dim"])
    check("code", code, wanted["proposal_pos_embed"], tolerance["proposal_pos_embed"])
    content, position = transformer["queries"](selection.reference)
    memory_position = grid_code(
        grid, options["hidden_dim"], normalize=options["position_embedding"] == "sine", device=CPU
    )
    with recorded(transformer["decoder"].final_norm) as outputs:
        layers = transformer["decoder"](
            DecoderInputs(
                content=content,
                position=position,
                reference=selection.reference,
                groups=groups,
                memory=given["src"].flatten(2).transpose(1, 2),
                memory_position=(memory_position + transformer.level_embed).flatten(1, 2),
                grid=grid,
                extent=selection.extent,
            )
        )
    check("hs", torch.stack(outputs), wanted["hs"], tolerance["hs"])
    boxes = refined_boxes(layers, coder, selection.extent)
    check("refined boxes", boxes, wanted["inter_references"], tolerance["boxes"])
