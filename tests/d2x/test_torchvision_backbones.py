"""torchvision's networks as detectron2 backbones, and weights for a backbone alone."""

import pytest
import torch
import torchvision
from detectron2.layers import FrozenBatchNorm2d
from torch import nn

from d2x.backbones.torchvision import REGNETS, SE_RATIO, TorchvisionRegNet, TorchvisionResNet
from d2x.backbones.weights import load_backbone_weights


def regnet(name, **changes):
    depth, w_0, w_a, w_m, group_width = REGNETS[name]
    se_ratio = SE_RATIO if name.startswith("y") else None
    settings = {"depth": depth, "w_0": w_0, "w_a": w_a, "w_m": w_m, "group_width": group_width, "se_ratio": se_ratio}
    return TorchvisionRegNet(**{**settings, **changes})


def body(network):
    return {name: value for name, value in network.state_dict().items() if not name.startswith("fc.")}


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "regnet_x_400mf", "regnet_y_400mf"])
def test_computes_what_torchvision_computes(name):
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)().eval()
    is_regnet = name.startswith("regnet_")
    ours = regnet(name.removeprefix("regnet_")) if is_regnet else TorchvisionResNet(depth=int(name[6:]))
    ours.eval().load_state_dict(body(theirs))
    x = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        feature = ours(x)["res5"]
        torch.testing.assert_close(theirs.fc(feature.mean((2, 3))), theirs(x), rtol=1e-4, atol=1e-5)
    assert feature.shape[2:] == (2, 3) and feature.shape[1] == ours.output_shape()["res5"].channels
    assert ours.torchvision_name == name


@pytest.mark.parametrize("name", ["x_800mf", "x_1_6gf", "y_800mf", "y_1_6gf"])
def test_regnets_have_torchvision_shapes(name):
    theirs, ours = getattr(torchvision.models, f"regnet_{name}")(), regnet(name)
    expected = {key: value.shape for key, value in body(theirs).items()}
    assert {key: value.shape for key, value in ours.state_dict().items()} == expected


@pytest.mark.parametrize("stem_stride", [2, 4])
def test_outputs_widths_and_strides(stem_stride):
    network = TorchvisionResNet(
        depth=18, widths=(8, 12, 16, 24), stem_stride=stem_stride, out_features=("res4", "res2")
    )
    out = network(torch.randn(2, 3, 70, 64))
    assert list(out) == ["res2", "res4"] and not hasattr(network, "layer4")
    for name, spec in network.output_shape().items():
        height, width = -(-70 // spec.stride), -(-64 // spec.stride)
        assert out[name].shape == (2, spec.channels, height, width)
    assert [spec.stride for spec in network.output_shape().values()] == [stem_stride, 4 * stem_stride]


@pytest.mark.parametrize("build", [TorchvisionResNet, None])
def test_frozen_stages_neither_train_nor_drift(build):
    network = TorchvisionResNet(depth=18, widths=(8, 8, 8, 8)) if build else regnet("x_200mf")
    network.freeze(2)
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    network(torch.randn(2, 3, 64, 64))["res5"].sum().backward()
    stem = network.bn1 if build else network.stem[1]
    assert isinstance(stem, FrozenBatchNorm2d)
    changed = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    first = ("conv1", "bn1", "layer1") if build else ("stem", "trunk_output.block1")
    assert changed and not any(name.startswith(first) for name in changed)
    trained = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert trained and not any(name.startswith(first) for name in trained)


@pytest.mark.parametrize("norm, kind", [("FrozenBN", FrozenBatchNorm2d), ("GN", nn.GroupNorm), ("BN", nn.BatchNorm2d)])
def test_norms(norm, kind):
    assert isinstance(TorchvisionResNet(depth=18, norm=norm).bn1, kind)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"depth": 19}, "DEPTH 19 is not one of 18"),
        ({"depth": 18, "stem_stride": 3}, "STEM_STRIDE must be 2 or 4"),
        ({"depth": 18, "widths": (8, 8)}, "WIDTHS needs 4 numbers"),
        ({"depth": 18, "out_features": ("res9",)}, "OUT_FEATURES"),
    ],
)
def test_wrong_options_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        TorchvisionResNet(**changes)


def test_weights_of_the_backbone_from_a_file(tmp_path):
    torch.manual_seed(0)
    source, target = TorchvisionResNet(depth=18, widths=(8,) * 4), TorchvisionResNet(depth=18, widths=(8,) * 4)
    for prefix in ("", "backbone.bottom_up.", "module."):
        path = tmp_path / "weights.pth"
        state = {prefix + name: value for name, value in source.state_dict().items()}
        torch.save({"model": {**state, "fc.weight": torch.zeros(3)}}, path)
        target.conv1.weight.data.zero_()
        assert load_backbone_weights(target, str(path)).missing == []
        assert torch.equal(target.conv1.weight, source.conv1.weight)


def test_wrong_weights_are_named(tmp_path):
    network, path = TorchvisionResNet(depth=18, widths=(8,) * 4), tmp_path / "other.pth"
    torch.save(TorchvisionResNet(depth=18, widths=(16,) * 4).state_dict(), path)
    with pytest.raises(ValueError, match="other.pth: conv1.weight has shape .* weights of another size"):
        load_backbone_weights(network, str(path))
    torch.save({"something.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match="weights of another network: it has 0 of the"):
        load_backbone_weights(network, str(path))
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        load_backbone_weights(network, "nowhere.pth")
    with pytest.raises(ValueError, match="no weights 'IMAGENET9' for resnet18; known: IMAGENET1K_V1"):
        load_backbone_weights(network, "IMAGENET9")
    with pytest.raises(ValueError, match="torchvision has no weights for TorchvisionRegNet regnet_x_4gf"):
        load_backbone_weights(regnet("x_4gf"), "DEFAULT")
