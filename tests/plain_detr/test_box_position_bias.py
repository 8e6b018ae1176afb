"""BoxRPB against its formula in loops."""

import math

import pytest
import torch

from plain_detr.decoder_layer import CrossAttention, DecoderLayer, init_transformer_linears
from plain_detr.modulation import box_rpb as box_position_bias
from plain_detr.modulation.box_rpb import BoxRPB


def scaled(offset: float, kind: str) -> float:
    return offset if kind == "linear" else math.copysign(math.log2(abs(offset) + 1) / 3, offset)


def four_loops(module: BoxRPB, boxes, hw, stride, kind, axial, corners):
    """(N, heads, Q, Hf * Wf), one query and one cell at a time."""
    (height, width), heads = hw, (module.mlp_x if axial else module.mlp)[2].out_features
    bias = torch.zeros(boxes.shape[0], heads, boxes.shape[1], height * width)
    for image in range(boxes.shape[0]):
        for query in range(boxes.shape[1]):
            cx, cy, w, h = boxes[image, query].tolist()
            xs, ys = ([cx - w / 2, cx + w / 2], [cy - h / 2, cy + h / 2]) if corners else ([cx], [cy])
            for i in range(height):
                for j in range(width):
                    dx = [scaled(x - (j + 0.5) * stride, kind) for x in xs]
                    dy = [scaled(y - (i + 0.5) * stride, kind) for y in ys]
                    if axial:
                        value = module.mlp_x(torch.tensor(dx)) + module.mlp_y(torch.tensor(dy))
                    else:
                        value = module.mlp(torch.tensor([one for pair in zip(dx, dy) for one in pair]))
                    bias[image, :, query, i * width + j] = value
    return bias


@pytest.mark.parametrize("kernels", [True, False])
@pytest.mark.parametrize("corners", [True, False])
@pytest.mark.parametrize("axial", [True, False])
@pytest.mark.parametrize("kind", ["linear", "abs_log8"])
def test_equals_four_loops(kind, axial, corners, kernels, monkeypatch):
    if not kernels:
        monkeypatch.setattr(box_position_bias, "axis_mlp_works", lambda boxes: False)
    hw, stride = (3, 5), 16
    boxes = torch.rand(2, 4, 4) * 60
    module = BoxRPB(num_heads=3, hidden_dim=8, offsets=kind, axial=axial, corners=corners)
    wanted = four_loops(module, boxes, hw, stride, kind, axial, corners)
    for limit in (1 << 30, 50):  # in one piece, and in pieces
        monkeypatch.setattr(box_position_bias, "HIDDEN_NUMBERS_CPU", limit)
        bias = module(boxes, hw, stride)
        full = bias.full if bias.full is not None else (bias.y[..., :, None] + bias.x[..., None, :]).flatten(-2)
        torch.testing.assert_close(full, wanted, rtol=1e-4, atol=1e-5)
        module.zero_grad()
        full.square().sum().backward()
        grads = [parameter.grad.clone() for parameter in module.parameters()]
        if limit == 1 << 30:
            first = grads
    for one, other in zip(first, grads):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-2)


def test_a_shift_by_one_cell_shifts_the_bias():
    module, stride = BoxRPB(num_heads=2, hidden_dim=8), 16
    boxes = torch.tensor([[[40.0, 24.0, 20.0, 10.0]]])
    bias = module(boxes, (4, 6), stride)
    moved = module(boxes + torch.tensor([16.0, 0, 0, 0]), (4, 6), stride)
    torch.testing.assert_close(moved.x[..., 1:], bias.x[..., :-1])
    torch.testing.assert_close(moved.y, bias.y)


def test_stays_float32_under_autocast():
    module, boxes = BoxRPB(num_heads=2, hidden_dim=8), torch.rand(1, 3, 4) * 900
    wanted = module(boxes, (2, 3), 16)
    with torch.autocast("cpu", torch.bfloat16):
        bias = module(boxes, (2, 3), 16)
    assert bias.x.dtype == torch.float32
    torch.testing.assert_close(bias.x, wanted.x)


def test_unknown_offsets():
    with pytest.raises(ValueError, match="linear, abs_log8"):
        BoxRPB(num_heads=2, offsets="log")


@pytest.mark.parametrize("pieces", [1, 4])
def test_gradients_equal_those_of_the_plain_layers(pieces, monkeypatch):
    module = BoxRPB(num_heads=3, hidden_dim=8)
    monkeypatch.setattr(box_position_bias, "axis_mlp_works", lambda boxes: False)
    monkeypatch.setattr(box_position_bias, "HIDDEN_NUMBERS_CPU", 1 + 8 * 2 * 4 * 5 // pieces)
    results = []
    for plain in (True, False):
        boxes = torch.linspace(1, 60, 32).view(2, 4, 4).requires_grad_()
        module.zero_grad()
        with monkeypatch.context() as patch:
            if plain:
                patch.setattr(torch.compiler, "is_compiling", lambda: True)
            bias = module(boxes, (3, 5), 16)
        (bias.x.square().sum() + bias.y.square().sum()).backward()
        results.append([bias.x, bias.y, boxes.grad, *(parameter.grad for parameter in module.parameters())])
    for one, other in zip(*results):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-3)


def test_attention_can_start_inside_the_box():
    slope = 0.5
    bias = BoxRPB(num_heads=3, hidden_dim=16, slope=slope)
    for mlp in (bias.mlp_x, bias.mlp_y):
        torch.nn.init.zeros_(mlp[0].weight)
        torch.nn.init.zeros_(mlp[2].weight)
    bias.reset_parameters()
    boxes = torch.tensor([[[20.0, 12.0, 16.0, 8.0]]])  # x 12 to 28, y 8 to 16
    with torch.no_grad():
        found = bias(boxes, (4, 6), 8)  # cell centres at 4, 12, 20, ...
    outside_x = torch.tensor([8.0, 0.0, 0.0, 0.0, 8.0, 16.0])
    outside_y = torch.tensor([4.0, 0.0, 4.0, 12.0])
    for head in range(3):
        torch.testing.assert_close(found.x[0, head, 0], -slope / 2**head * outside_x)
        torch.testing.assert_close(found.y[0, head, 0], -slope / 2**head * outside_y)


def test_the_decoders_initialisation_keeps_the_start_inside_the_box():
    torch.manual_seed(0)
    attention = CrossAttention(hidden_dim=32, num_heads=4, box_rpb=BoxRPB(num_heads=4, hidden_dim=32, slope=0.3))
    layer = DecoderLayer(hidden_dim=32, num_heads=4, feedforward_dim=32, cross_attention=attention)
    init_transformer_linears(layer)
    boxes = torch.tensor([[[32.0, 32.0, 24.0, 24.0]]])
    queries, keys = torch.randn(1, 1, 32), torch.randn(1, 256, 32)
    maps = layer.cross_attention.weights(queries, keys, boxes, (16, 16), 8)[0, :, 0]
    inside = maps[:, 2:6, 2:6].sum((1, 2))
    assert inside[0] > 0.8 and inside[0] > inside[1] > inside[2]
    without = layer.cross_attention.weights(queries, keys, boxes, (16, 16), 8, with_bias=False)[0, :, 0]
    assert (without[:, 2:6, 2:6].sum((1, 2)) < 0.2).all()


@pytest.mark.parametrize("other", [{"axial": False}, {"corners": False}, {"offsets": "abs_log8"}])
def test_a_start_inside_the_box_needs_the_form_that_can_express_it(other):
    with pytest.raises(ValueError, match="SLOPE needs"):
        BoxRPB(num_heads=2, hidden_dim=8, slope=0.3, **other)
