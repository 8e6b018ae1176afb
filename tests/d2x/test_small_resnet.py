import pytest
import torch
from torch import nn

from d2x.backbones.small_resnet import SmallResNet, build_small_conv_backbone
from d2x.config.load import load_cfg


@pytest.mark.parametrize("norm", ["GN", "BN"])
@pytest.mark.parametrize("size", [(1, 1), (1, 37), (70, 33), (128, 128)])
def test_maps_are_rounded_up_at_any_size(norm, size):
    backbone = SmallResNet(widths=(12, 16, 7, 24), norm=norm, out_features=("res2", "res3", "res4", "res5")).eval()
    maps = backbone(torch.randn(2, 3, *size))
    for name, spec in backbone.output_shape().items():
        height, width = (-(-side // spec.stride) for side in size)
        assert maps[name].shape == (2, spec.channels, height, width)
        assert maps[name].isfinite().all()
    assert [spec.stride for spec in backbone.output_shape().values()] == [4, 8, 16, 32]


def test_group_norm_makes_images_independent_of_the_batch():
    backbone = SmallResNet().train()
    images = torch.randn(3, 3, 40, 40)
    torch.testing.assert_close(backbone(images)["res4"][:1], backbone(images[:1])["res4"])
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in backbone.modules())


def test_stages_after_the_last_output_are_not_built():
    backbone = SmallResNet(out_features=("res3",))
    assert {name.split(".")[0] for name, _ in backbone.named_parameters()} == {"stem", "res2", "res3"}


def test_default_size():
    whole = SmallResNet(out_features=("res5",))
    assert sum(parameter.numel() for parameter in whole.parameters()) == pytest.approx(1.2e6, rel=0.05)


def test_config_reaches_the_network():
    cfg = load_cfg(None, ["MODEL.SMALL_RESNET.WIDTHS", [8, 16], "MODEL.SMALL_RESNET.BLOCKS", [1, 3]])
    cfg.MODEL.SMALL_RESNET.OUT_FEATURES = ["res3"]
    backbone = build_small_conv_backbone(cfg)
    assert len(backbone.res3) == 3
    assert backbone.output_shape()["res3"].channels == 16


@pytest.mark.parametrize(
    "options, message",
    [
        ({"widths": (8, 8), "blocks": (1,)}, "2 WIDTHS but 1 BLOCKS"),
        ({"norm": "LN"}, "NORM 'LN' must be GN or BN"),
        ({"out_features": ("res6",)}, r"\['res6'\] must be among res2, res3"),
        ({"out_features": ()}, "must be among"),
    ],
)
def test_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        SmallResNet(**options)


def test_equal_neighbouring_widths_are_refused():
    with pytest.raises(ValueError, match="neighbours must differ"):
        SmallResNet(widths=(16, 16), blocks=(1, 1))
