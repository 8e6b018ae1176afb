"""The aggregating neck: shapes, that every level reaches the output, weight against the plain neck."""

import pytest
import torch
from detectron2.layers import ShapeSpec

from centerx.dlaup_neck import Aggregation, DLAUpNeck
from centerx.upsample_neck import UpsampleNeck

SHAPES = {f"res{i + 2}": ShapeSpec(channels=8 * 2**i, stride=4 * 2**i) for i in range(4)}


def features(height=32, width=64):
    return {
        name: torch.randn(2, spec.channels, height // spec.stride, width // spec.stride, requires_grad=True)
        for name, spec in SHAPES.items()
    }


@pytest.mark.parametrize("conv, up", [("separable", "depthwise"), ("plain", "transposed"), ("separable", "bilinear")])
def test_every_level_reaches_the_finest_output(conv, up):
    neck = DLAUpNeck(SHAPES, channels=(32, 16, 8), conv=conv, up=up)
    inputs = features()
    out = neck(inputs)
    assert out.shape == (2, 8, 8, 16) and neck.out_channels == 8
    out.square().sum().backward()
    assert all(value.grad.abs().sum() > 0 for value in inputs.values())
    assert all(parameter.grad is not None for parameter in neck.parameters())


def test_finer_input_levels_are_not_needed():
    neck = DLAUpNeck({name: SHAPES[name] for name in ("res3", "res4", "res5")}, output_stride=8)
    assert neck(features())[0].shape[1:] == (4, 8)


def test_channels_of_a_short_list_repeat_its_first_entry():
    neck = DLAUpNeck(SHAPES, channels=(256, 128, 64))
    assert [lateral[0].out_channels for lateral in neck.laterals] == [64, 128, 256, 256]


def test_it_is_lighter_than_the_plain_neck():
    def count(neck):
        return sum(parameter.numel() for parameter in neck.parameters())

    wide = {f"res{i + 2}": ShapeSpec(channels=64 * 2**i, stride=4 * 2**i) for i in range(4)}
    assert count(DLAUpNeck(wide)) < count(UpsampleNeck(wide, channels=(256, 128, 64))) / 2


def test_aggregation_of_two_features_by_hand():
    node = Aggregation([1, 1], [1, 2], 1, conv="plain", norm="", up={"kind": "bilinear", "kernel": 4, "init": "random"})
    for layer in (node.projections[0][0], node.nodes[0][0]):
        layer.weight.data.zero_()
        layer.bias.data.zero_()
        layer.weight.data[0, 0, 1, 1] = 2.0  # 3x3 convolution that doubles
    fine, coarse = torch.full((1, 1, 2, 2), 3.0), torch.full((1, 1, 1, 1), 5.0)
    assert node([fine, coarse])[1].flatten().tolist() == [2 * (3 + 2 * 5)] * 4


def test_missing_strides_are_named():
    with pytest.raises(ValueError, match=r"dlaup needs backbone features at strides 4, 8, ...; it has \[4, 16\]"):
        DLAUpNeck({name: SHAPES[name] for name in ("res2", "res4")})
