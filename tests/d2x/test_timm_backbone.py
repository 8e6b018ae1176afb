import pytest
import timm
import torch
from detectron2.config import get_cfg
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_backbone
from safetensors.torch import save_file
from torch import nn

from d2x.backbones.config import add_backbone_config
from d2x.backbones.timm import TimmBackbone


def make_cfg(**settings):
    cfg = get_cfg()
    add_backbone_config(cfg)
    cfg.MODEL.BACKBONE.NAME = "build_timm_backbone"
    for key, value in settings.items():
        cfg.MODEL.TIMM[key] = value
    return cfg


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Nothing in a cache, and no hub: its client reads the first variable only once, when it is imported."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))


@pytest.mark.parametrize(
    "name, channels, strides",
    [
        ("resnet18", [64, 64, 128, 256, 512], [2, 4, 8, 16, 32]),
        ("convnext_atto", [40, 80, 160, 320], [4, 8, 16, 32]),
        ("swin_tiny_patch4_window7_224", [96, 192, 384, 768], [4, 8, 16, 32]),  # features are channels-last
        ("vit_tiny_patch16_224", [192, 192, 192], [16, 16, 16]),
        ("vit_small_patch14_dinov2", [384, 384, 384], [14, 14, 14]),
    ],
)
def test_output_shape_says_what_comes_out(name, channels, strides):
    backbone = build_backbone(make_cfg(NAME=name)).eval()
    shapes = backbone.output_shape()
    assert [shape.channels for shape in shapes.values()] == channels
    assert [shape.stride for shape in shapes.values()] == strides
    assert backbone.size_divisibility == max(strides)
    height, width = 3 * max(strides), 5 * max(strides)
    with torch.no_grad():
        features = backbone(torch.rand(1, 3, height, width))
    assert {name: tuple(feature.shape) for name, feature in features.items()} == {
        name: (1, shape.channels, height // shape.stride, width // shape.stride) for name, shape in shapes.items()
    }


def test_outputs_are_named_for_their_strides():
    assert list(TimmBackbone(name="resnet18").output_shape()) == ["res1", "res2", "res3", "res4", "res5"]
    assert list(TimmBackbone(name="vit_tiny_patch16_224").output_shape()) == ["res4_0", "res4_1", "res4"]
    assert list(TimmBackbone(name="vit_small_patch14_dinov2", out_indices=[11]).output_shape()) == ["stride14"]


@pytest.mark.parametrize("indices", [[4], [-1]])
def test_only_the_chosen_outputs(indices):
    shapes = build_backbone(make_cfg(NAME="resnet18", OUT_INDICES=indices)).output_shape()
    assert {name: (shape.channels, shape.stride) for name, shape in shapes.items()} == {"res5": (512, 32)}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_a_local_file_gives_the_features_of_its_model(name, suffix, tmp_path):
    classifier = timm.create_model(name).eval()
    path = str(tmp_path / f"weights{suffix}")
    state = classifier.state_dict()
    if suffix == ".pth":
        torch.save({"state_dict": state}, path)
    else:
        save_file(state, path)
    backbone = build_backbone(make_cfg(NAME=name, WEIGHTS=path)).eval()
    images = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        expected = classifier.forward_intermediates(images, intermediates_only=True)
        features = list(backbone(images).values())
    torch.testing.assert_close(features[-1], expected[-1])


def test_the_file_of_another_model_is_refused(tmp_path):
    path = str(tmp_path / "other.safetensors")
    save_file(timm.create_model("convnext_atto").state_dict(), path)
    with pytest.raises(ValueError, match=r"other.safetensors: weights of another network: .*TimmBackbone\(resnet18\)"):
        TimmBackbone(name="resnet18", weights=path)


def test_a_file_of_which_nothing_is_used_is_refused(tmp_path):
    """timm loads EfficientNets for features without asking that anything matches."""
    path = str(tmp_path / "other.safetensors")
    save_file(timm.create_model("convnext_atto").state_dict(), path)
    with pytest.raises(ValueError, match=r"has 0 of the .* TimmBackbone\(efficientnet_b0\)"):
        TimmBackbone(name="efficientnet_b0", weights=path)


def test_a_missing_file_is_named():
    with pytest.raises(FileNotFoundError, match="MODEL.TIMM.WEIGHTS: .*nowhere.pth"):
        TimmBackbone(name="resnet18", weights="nowhere.pth")


def test_pretrained_offline_is_one_clear_error(offline):
    with pytest.raises(ValueError, match="no pre-trained weights for 'resnet18'.*MODEL.TIMM.WEIGHTS") as caught:
        build_backbone(make_cfg(NAME="resnet18", PRETRAINED=True))
    assert "\n" not in str(caught.value)
    assert "timm/resnet18.a1_in1k" in str(caught.value)


def test_a_detector_checkpoint_needs_no_pretrained_weights(offline):
    cfg = make_cfg(NAME="resnet18", PRETRAINED=True, WEIGHTS="nowhere.pth")
    cfg.MODEL.WEIGHTS = "output/model_final.pth"
    assert list(build_backbone(cfg).output_shape())[-1] == "res5"


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"name": "resnet99"}, "has no model 'resnet99'"),
        ({"name": "resnet18", "norm": "LN"}, "MODEL.TIMM.NORM 'LN'"),
        ({"name": "resnet18", "out_indices": [9]}, r"MODEL.TIMM.OUT_INDICES \[9\]"),
        ({"name": "vgg11", "drop_path_rate": 0.1}, "MODEL.TIMM.DROP_PATH: 'vgg11'"),
        ({"name": "resnet18", "weights": "a.pth", "pretrained": True}, "not both"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        TimmBackbone(**settings)


def test_a_size_the_model_cannot_take_is_one_clear_error():
    with pytest.raises(ValueError, match="takes no images of 96 x 64 px"):
        TimmBackbone(name="mixer_s16_224")(torch.rand(1, 3, 64, 96))


def test_norms_can_be_frozen_or_synchronised():
    backbone = TimmBackbone(name="resnet18", norm="FrozenBN")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in backbone.modules())
    assert not isinstance(backbone.model, FrozenBatchNorm2d)
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(backbone.train()(images)["res5"], backbone.eval()(images)["res5"])
    synchronised = TimmBackbone(name="resnet18", norm="SyncBN")
    assert any(isinstance(module, nn.SyncBatchNorm) for module in synchronised.modules())
