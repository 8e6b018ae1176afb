"""Deformable convolution, up-sampling, head, and the backbone that joins them."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from torch import nn

from centerx.backbone import UpsampledBackbone
from centerx.deform_conv import SelfDeformConv
from centerx.head import CenterHead
from centerx.upsample_neck import UpsampleNeck, UpsampleStage, make_upsampler
from d2x.backbones.torchvision import TorchvisionResNet


@pytest.mark.parametrize("modulated, factor", [(False, 1.0), (True, 0.5)])
def test_fresh_deformable_convolution_is_a_convolution(modulated, factor):
    layer = SelfDeformConv(3, 5, modulated=modulated)  # all shifts 0, all weights sigmoid(0)
    bias = layer.deform.bias
    x = torch.randn(2, 3, 6, 9)
    expected = nn.functional.conv2d(x, layer.deform.weight * factor, bias, padding=1)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["transposed", "depthwise", "bilinear"])
def test_fresh_upsampler_interpolates_each_channel(kind):
    layer = make_upsampler(kind, 3, 4, "bilinear")
    x = torch.arange(8.0)[None, None, None].expand(1, 3, 4, 8) * torch.tensor([1.0, 2, 3])[:, None, None]
    out = layer(x)
    assert out.shape == (1, 3, 8, 16)
    # inside, value at output pixel j is (j + 0.5) / 2 - 0.5
    inner = (torch.arange(2, 14) + 0.5) / 2 - 0.5
    torch.testing.assert_close(out[0, :, 4, 2:14], inner * torch.tensor([[1.0], [2], [3]]))


@pytest.mark.parametrize("kernel", [2, 3, 4])
def test_every_kernel_doubles_the_size(kernel):
    assert make_upsampler("transposed", 2, kernel, "random")(torch.zeros(1, 2, 3, 5)).shape == (1, 2, 6, 10)


@pytest.mark.parametrize("conv", ["plain", "separable", "deform", "modulated_deform"])
@pytest.mark.parametrize("norm", ["BN", "GN"])
def test_stage_with_a_skip(conv, norm):
    stage = UpsampleStage(4, 32, conv=conv, norm=norm, skip_channels=3)
    assert stage(torch.randn(2, 4, 3, 5), torch.randn(2, 3, 6, 10)).shape == (2, 32, 6, 10)


@pytest.mark.parametrize("key, value", [("conv", "fancy"), ("up", "fancy"), ("up_init", "fancy"), ("up_kernel", 5)])
def test_wrong_option_of_the_neck_is_named(key, value):
    with pytest.raises(ValueError, match=f"MODEL.CENTERNET.NECK.{key.upper()}"):
        UpsampleStage(4, 4, **{key: value})


SHAPES = {f"res{i + 2}": ShapeSpec(channels=8 * 2**i, stride=4 * 2**i) for i in range(4)}


def test_neck_infers_channels_and_takes_the_end_of_a_long_list():
    neck = UpsampleNeck(SHAPES, channels=(99, 32, 16, 8), skip=True)
    assert neck.in_feature == "res5" and neck.out_channels == 8
    assert neck.skip_features == ["res4", "res3", "res2"]
    features = {
        name: torch.randn(2, spec.channels, 64 // spec.stride, 96 // spec.stride) for name, spec in SHAPES.items()
    }
    assert neck(features).shape == (2, 8, 16, 24)


def test_neck_that_cannot_reach_its_stride():
    with pytest.raises(ValueError, match="OUTPUT_STRIDE 3 cannot be reached from the backbone's stride 32"):
        UpsampleNeck(SHAPES, output_stride=3)
    with pytest.raises(ValueError, match="CHANNELS has 2 entries, but stride 32 to 4 takes 3 stages"):
        UpsampleNeck(SHAPES, channels=(8, 8))


@pytest.mark.parametrize("stride, name", [(4, "p2"), (8, "p3"), (32, "p5")])
def test_backbone_names_its_output_for_the_stride(stride, name):
    bottom_up = TorchvisionResNet(depth=18, widths=(8, 8, 8, 8))
    neck = UpsampleNeck(bottom_up.output_shape(), output_stride=stride, channels=(8, 8, 8))
    backbone = UpsampledBackbone(bottom_up, neck, output_stride=stride)
    assert backbone.size_divisibility == 32
    out = backbone(torch.randn(1, 3, 64, 96))
    assert {key: tuple(value.shape) for key, value in out.items()} == {name: (1, 8, 64 // stride, 96 // stride)}
    assert backbone.output_shape()[name].stride == stride


def test_head_starts_at_a_tenth_and_speaks_float32_under_autocast():
    head = CenterHead(in_channels=4, hidden_channels=8, num_classes=3, class_specific_size=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = head([torch.zeros(2, 4, 5, 7)])
    assert out.heatmap_logits.dtype == out.size.dtype == torch.float32
    assert out.size.shape == (2, 6, 5, 7) and out.offset.shape == (2, 2, 5, 7)
    assert out.heatmap_logits.sigmoid().mean().item() == pytest.approx(0.1, abs=1e-2)
    assert (
        CenterHead(in_channels=4, hidden_channels=8, num_classes=3, with_offset=False)([torch.zeros(1, 4, 2, 2)]).offset
        is None
    )
