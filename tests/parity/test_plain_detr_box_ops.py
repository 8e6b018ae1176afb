import math

import pytest
import torch
from torchvision.ops import box_iou

from plain_detr.box_coder import cxcywh_to_xyxy, decode_deltas, encode_deltas, inverse_sigmoid, xyxy_to_cxcywh
from plain_detr.set_losses import generalized_iou
from tests.parity.golden import cases, load
from tests.parity.plain_detr_parts import check


@pytest.mark.parametrize("name", cases("plain_detr", "box_ops"))
def test_boxes_equal_the_released_ones(name):
    case = load("plain_detr", name)
    given, wanted = case.group("input"), case.group("output")
    a, b = given["boxes_xyxy_a"], given["boxes_xyxy_b"]
    iou = box_iou(a, b)
    area_a, area_b = ((x[:, 2:] - x[:, :2]).prod(1) for x in (a, b))
    count = len(given["gt_boxes"])
    ours = {
        "cxcywh_to_xyxy": cxcywh_to_xyxy(given["boxes_cxcywh"]),
        "xyxy_to_cxcywh": xyxy_to_cxcywh(a),
        "iou": iou,
        "union": (area_a[:, None] + area_b) / (1 + iou),
        "giou": generalized_iou(xyxy_to_cxcywh(a)[:, None], xyxy_to_cxcywh(b)),
        "inverse_sigmoid": inverse_sigmoid(given["unit"]),
        "bbox2delta_pairwise": encode_deltas(given["proposals"][0][:, None], given["gt_boxes"]),
        "bbox2delta_elementwise": encode_deltas(given["proposals"][0][:count], given["gt_boxes"]),
    }
    for key, value in ours.items():
        check(key, value, wanted[key], case.info["tolerance"]["output"])


@pytest.mark.parametrize("name", cases("plain_detr", "box_ops"))
def test_delta_decoding_equals_the_released_one(name):
    case = load("plain_detr", name)
    given, wanted, grads = case.group("input"), case.group("output"), case.group("grad_input")
    for call, options in case.info["options"]["delta2bbox_calls"].items():
        proposals, deltas = (given[key].clone().requires_grad_() for key in ("proposals", "deltas"))
        extent = options.get("max_shape")
        if extent == "tensor":
            extent = torch.cat([given["max_shape_w"], given["max_shape_h"]], dim=-1).float()
        elif extent is not None:
            extent = torch.tensor([extent[1], extent[0]], dtype=torch.float32)
        boxes = decode_deltas(
            proposals,
            deltas,
            extent if options.get("clip_border", True) else None,
            max_log_ratio=abs(math.log(options.get("wh_ratio_clip", 16 / 1000))),
            max_shift=options.get("ctr_clamp", 32) if options.get("add_ctr_clamp") else None,
        )
        corners = cxcywh_to_xyxy(boxes)
        check(call, corners, wanted[f"delta2bbox_{call}"], case.info["tolerance"]["output"])
        (corners * given["grad_weight"]).sum().backward()
        check(f"{call} deltas", deltas.grad, grads[f"deltas_{call}"], case.info["tolerance"]["grad"])
        check(f"{call} proposals", proposals.grad, grads[f"proposals_{call}"], case.info["tolerance"]["grad"])
