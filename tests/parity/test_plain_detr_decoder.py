"""Outputs, refined boxes and gradients of the released decoders."""

import pytest
import torch
from torch import nn

from plain_detr.decoder import DecoderInputs
from tests.parity.golden import cases, load
from tests.parity.plain_detr_parts import (
    check,
    check_gradient,
    coder_for,
    decoder_for,
    grid_from_mask,
    groups_from_mask,
    load_official,
    official_names,
    our_name,
    parametrize_implementations,
    recorded,
    refined_boxes,
)

PREFIX = "transformer.decoder."


@pytest.mark.parametrize("name", cases("plain_detr", "decoder"))
@parametrize_implementations
def test_layers_equal_the_released_ones(name, implementation):
    case = load("plain_detr", name)
    options, tolerance, given = case.info["options"], case.info["tolerance"], case.group("input")
    coder, state = coder_for(options), official_names(case.state, PREFIX)
    groups = groups_from_mask(given["self_attn_mask"])
    hw = tuple(given["spatial_shapes"][0].tolist())
    grid = grid_from_mask(given["padding_mask"].unflatten(1, hw), options["proposal_in_stride"])
    runs = sorted({key.split(".")[1] for key in case.tensors if key.startswith("output.")})
    for run in runs:
        decoder = decoder_for(options, coder, implementation, look_forward_twice=run == "lft")
        load_official(nn.ModuleDict({"decoder": decoder}), state, allow_unused=("proposals.",))
        leaves = {key: given[key].clone().requires_grad_() for key in ("tgt", "query_pos", "src", "src_pos")}
        with recorded(decoder.final_norm) as outputs:
            layers = decoder(
                DecoderInputs(
                    content=leaves["tgt"],
                    position=leaves["query_pos"],
                    reference=given["reference_points"],
                    groups=groups,
                    memory=leaves["src"],
                    memory_position=leaves["src_pos"],
                    grid=grid,
                    extent=grid.extent_wh(torch.device("cpu")),
                )
            )
        outputs = torch.stack(outputs)
        boxes = refined_boxes(layers, coder, grid.extent_wh(torch.device("cpu")))
        if run != "lft":
            boxes = boxes.detach()  # the released code returns detached boxes then
        wanted = case.group(f"output.{run}")
        check(f"{run} hs", outputs, wanted["hs"], tolerance["output"])
        check(f"{run} boxes", boxes, wanted["inter_references"], tolerance["boxes"])
        total = (outputs * given["grad_weight_hs"]).sum() + (boxes * given["grad_weight_refs"]).sum()
        total.backward()
        for key in case.group(f"grad_input.{run}"):
            check_gradient(case, f"grad_input.{run}.{key}", leaves[key].grad)
        ours = dict(decoder.named_parameters())
        for key, value in case.group(f"grad.{run}").items():
            (official,) = official_names({key: value}, PREFIX)
            grad = ours[our_name(official, state).removeprefix("decoder.")].grad
            check_gradient(case, f"grad.{run}.{key}", grad)
