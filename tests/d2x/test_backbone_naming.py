"""Files of one library in the networks of another, and whose names an error says a file has."""

import pickle
import re

import numpy as np
import pytest
import timm
import torch
import torchvision
from detectron2.config import get_cfg
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone
from torch import nn

from d2x.backbones.config import add_backbone_config, forget_unread_factor
from d2x.backbones.naming import common_names, owner
from d2x.backbones.small_resnet import SmallResNet
from d2x.backbones.swin_v2 import SwinV2
from d2x.backbones.timm import TimmBackbone
from d2x.backbones.torchvision import REGNETS, SE_RATIO, TorchvisionRegNet, TorchvisionResNet
from d2x.backbones.weights import load_backbone_weights, weight_hooks
from d2x.config.load import load_cfg

# torchvision's network, the same in timm
PAIRS = [
    ("mobilenet_v2", "mobilenetv2_100"),
    ("resnet18", "resnet18"),
    ("resnet50", "resnet50"),
    ("regnet_y_400mf", "regnety_004"),
    ("regnet_x_400mf", "regnetx_004_tv"),
]


def with_statistics(network: nn.Module) -> nn.Module:
    """In evaluation, and no batch norm at its initial values."""
    for name, value in network.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif name.endswith("running_mean"):
            value.normal_(std=0.1)
    return network.eval()


def saved(tmp_path, state: dict, name: str = "weights.pth") -> str:
    torch.save(state, tmp_path / name)
    return str(tmp_path / name)


def own_backbone(name: str) -> nn.Module:
    """torchvision's network of that name as a backbone here."""
    if name.startswith("resnet"):
        return TorchvisionResNet(depth=int(name[6:])).eval()
    depth, w_0, w_a, w_m, group_width = REGNETS[name.removeprefix("regnet_")]
    ratio = SE_RATIO if "_y_" in name else None
    return TorchvisionRegNet(depth=depth, w_0=w_0, w_a=w_a, w_m=w_m, group_width=group_width, se_ratio=ratio).eval()


def last_feature(network: nn.Module, image: torch.Tensor) -> torch.Tensor:
    """The coarsest feature of a classifier of torchvision, before its pooling."""
    features = []
    taken = {"mobilenet_v2": "features.17", "resnet": "layer4", "regnet": "trunk_output"}
    kind = next(part for part in taken.values() if part in dict(network.named_modules()))
    handle = network.get_submodule(kind).register_forward_hook(lambda *found: features.append(found[2]))
    network(image)
    handle.remove()
    return features[0]


@pytest.mark.parametrize(("theirs", "ours"), PAIRS)
def test_torchvisions_file_in_timms_network(theirs, ours, tmp_path):
    source, target = with_statistics(getattr(torchvision.models, theirs)()), TimmBackbone(name=ours).eval()
    report = load_backbone_weights(target, saved(tmp_path, source.state_dict()))
    assert report.missing == [] and report.interpolated == {}
    assert all(re.match(r"fc\.|classifier\.|features\.18\.|.*num_batches_tracked", name) for name in report.left_out)
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        torch.testing.assert_close(target(image)["res5"], last_feature(source, image), rtol=1e-5, atol=1e-5)


def test_every_tensor_of_mobilenet_v2_has_a_name_in_timm():
    """Also the last convolution and its norm, which features do not need; the classifiers' names differ."""
    theirs, ours = torchvision.models.mobilenet_v2().state_dict(), timm.create_model("mobilenetv2_100").state_dict()
    named = {common: value for (_, common), value in zip(common_names(theirs).items(), theirs.values())}
    body = {name: value.shape for name, value in ours.items() if not name.startswith("classifier")}
    assert {name: value.shape for name, value in named.items() if name in body} == body
    assert sorted(set(named) - set(body)) == ["classifier.1.bias", "classifier.1.weight"]


@pytest.mark.parametrize(("ours", "theirs"), PAIRS[1:])
def test_timms_file_in_torchvisions_network(ours, theirs, tmp_path):
    source, target = with_statistics(timm.create_model(theirs)), own_backbone(ours)
    report = load_backbone_weights(target, saved(tmp_path, {"state_dict": source.state_dict()}))
    assert report.missing == []
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        expected = source.forward_features(image)
        torch.testing.assert_close(target(image)["res5"], expected, rtol=1e-5, atol=1e-5)


def detectron2_resnet() -> nn.Module:
    cfg = get_cfg()
    cfg.MODEL.RESNETS.DEPTH, cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 18, 64
    cfg.MODEL.RESNETS.STRIDE_IN_1X1, cfg.MODEL.RESNETS.OUT_FEATURES = False, ["res5"]
    return with_statistics(build_resnet_backbone(cfg, ShapeSpec(channels=3)))


@pytest.mark.parametrize("suffix", ["pth", "pkl"])
@pytest.mark.parametrize("make", [lambda: TorchvisionResNet(depth=18), lambda: TimmBackbone(name="resnet18")])
def test_detectron2s_file_in_other_resnets(make, suffix, tmp_path):
    source, target = detectron2_resnet(), make().eval()
    path = saved(tmp_path, source.state_dict(), "weights.pth")
    if suffix == "pkl":  # as its model zoo has them: arrays
        path = str(tmp_path / "weights.pkl")
        arrays = {name: value.numpy() for name, value in source.state_dict().items()}
        with open(path, "wb") as file:
            pickle.dump({"model": arrays, "__author__": "torchvision", "matching_heuristics": True}, file, protocol=2)
    assert load_backbone_weights(target, path).missing == []
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(target(image)["res5"], source(image)["res5"], rtol=1e-5, atol=1e-5)


class Code:
    def __reduce__(self):
        return print, ("this must not run",)


@pytest.mark.parametrize("content", [Code(), {"model": {"x": Code()}}, np.array([Code()], dtype=object)])
def test_a_pickle_with_code_is_refused(content, tmp_path, capsys):
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ValueError, match=r"evil.pkl: refused .*builtins.print.*arrays and plain values only"):
        load_backbone_weights(SmallResNet(), str(path))
    assert "must not run" not in capsys.readouterr().out


def test_a_file_that_is_no_pickle_is_one_line(tmp_path):
    (tmp_path / "text.pkl").write_text("hello")
    with pytest.raises(ValueError, match="text.pkl: refused or not readable") as caught:
        load_backbone_weights(SmallResNet(), str(tmp_path / "text.pkl"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrapper", ["backbone.body.", "module.backbone.bottom_up.", "student.net.", "model."])
def test_a_network_inside_another(wrapper, tmp_path):
    source, target = TorchvisionResNet(depth=18, widths=(8,) * 4), TorchvisionResNet(depth=18, widths=(8,) * 4)
    state = {wrapper + name: value for name, value in source.state_dict().items()}
    path = saved(tmp_path, {"model": {**state, "roi_heads.mask.weight": torch.zeros(3)}})
    assert load_backbone_weights(target, path).missing == []
    assert torch.equal(target.layer3[0].conv1.weight, source.layer3[0].conv1.weight)


def test_averaged_weights_are_taken_where_a_file_has_both(tmp_path):
    raw, averaged = SmallResNet(), SmallResNet()
    path = saved(tmp_path, {"state_dict": raw.state_dict(), "state_dict_ema": averaged.state_dict()})
    target = SmallResNet()
    load_backbone_weights(target, path)
    assert torch.equal(target.stem[0].weight, averaged.stem[0].weight)


ORIGINAL_CONVNEXT = [
    (r"^stem\.(\d)", r"downsample_layers.0.\1"),
    (r"^stages\.(\d)\.downsample\.(\d)", r"downsample_layers.\1.\2"),
    (r"\.blocks\.(\d+)\.", r".\1."),
    ("conv_dw", "dwconv"),
    (r"mlp\.fc(\d)", r"pwconv\1"),
    (r"^head\.norm\.", "norm."),
    (r"^head\.fc\.", "head."),
]


def test_a_release_that_timm_converts(tmp_path):
    """ConvNeXt's authors' names, in which the matrices of the MLPs have two dimensions."""
    source = timm.create_model("test_convnext")
    state = {}
    for name, value in source.state_dict().items():
        for pattern, replacement in ORIGINAL_CONVNEXT:
            name = re.sub(pattern, replacement, name)
        state[name] = value.flatten(1) if "pwconv" in name and value.ndim == 4 else value
    target = TimmBackbone(name="test_convnext")
    report = load_backbone_weights(target, saved(tmp_path, {"model": state}))
    assert report.missing == []
    assert "downsample_layers.0.0.weight" in report.renamed.values()
    expected = source.state_dict()
    for name, value in target.model.state_dict().items():
        assert torch.equal(value, expected[re.sub(r"^(stem|stages)_", r"\1.", name)]), name


NAMES = {
    "torchvision's or timm's ResNet": lambda: torchvision.models.resnet18(),
    "torchvision's RegNet": lambda: torchvision.models.regnet_x_400mf(),
    "torchvision's MobileNetV2": lambda: torchvision.models.mobilenet_v2(),
    "torchvision's Swin": lambda: torchvision.models.swin_t(),
    "torchvision's": lambda: torchvision.models.efficientnet_b0(),
    "timm's RegNet": lambda: timm.create_model("regnetx_002"),
    "timm's ViT": lambda: timm.create_model("test_vit"),
    "timm's Swin": lambda: timm.create_model("swin_tiny_patch4_window7_224"),
    "timm's": lambda: timm.create_model("mobilenetv2_100"),
    "detectron2's ResNet": detectron2_resnet,
    "this project's SmallResNet": SmallResNet,
    "the Swin authors'": lambda: SwinV2(embed_dim=24),
}


@pytest.mark.parametrize("whose", NAMES)
def test_an_error_says_whose_names_a_file_has(whose, tmp_path):
    target = SmallResNet() if "Small" not in whose else TorchvisionResNet(depth=18)
    with torch.device("cpu"):
        path = saved(tmp_path, NAMES[whose]().state_dict())
    with pytest.raises(ValueError) as caught:
        load_backbone_weights(target, path)
    text, wanted = str(caught.value), owner(target.state_dict())
    assert f"it holds {whose} names" in text and f"the backbone has {wanted}" in text and "\n" not in text


@pytest.mark.parametrize(
    ("name", "whose"),
    [
        ("encoder.layers.0.blocks.0.norm1.weight", "SimMIM's"),
        ("decoder_embed.weight", "MAE's"),
        ("storage_tokens", "DINOv3's"),
        ("vit.embeddings.cls_token.x", "Hugging Face transformers'"),
        ("res2_0_branch2a_w", "Caffe2's"),
        ("roi_heads.box_head.fc1.weight", "a whole detector's"),
        ("something.weight", "unfamiliar"),
    ],
)
def test_owners(name, whose):
    assert owner({name: None}) == f"{whose} names ('{name}' and so on)"


def test_a_download_asked_of_a_backbone_that_has_none():
    with pytest.raises(FileNotFoundError, match=r"file not found: IMAGENET1K_V1 \(SmallResNet has no weights by name"):
        load_backbone_weights(SmallResNet(), "IMAGENET1K_V1")


def test_the_hook_loads_the_backbone_below_a_neck(tmp_path):
    source, model = SmallResNet(), nn.Module()
    model.backbone = nn.Module()
    model.backbone.bottom_up = SmallResNet()
    cfg = get_cfg()
    add_backbone_config(cfg)
    cfg.MODEL.WEIGHTS, cfg.MODEL.BACKBONE.WEIGHTS = "", saved(tmp_path, source.state_dict())
    (hook,) = weight_hooks(cfg, model, "backbone.bottom_up")
    for start, loaded in ((7, False), (0, True)):
        hook.trainer = type("Trainer", (), {"start_iter": start})
        hook.before_train()
        assert torch.equal(model.backbone.bottom_up.stem[0].weight, source.stem[0].weight) == loaded


@pytest.mark.parametrize(
    ("content", "factor", "expected"),
    [
        ({"GLOBAL": {}, "SOLVER": {}}, 0.1, None),  # saved by version 0.1
        ({"GLOBAL": {}, "SOLVER": {}}, 0.5, 0.5),  # there by a wish
        ({"GLOBAL": {}, "PLUGINS": []}, 0.1, 0.1),  # saved since
        ({"SOLVER": {"BACKBONE_LR_FACTOR": 0.1}}, 0.1, 0.1),  # written by hand
    ],
)
def test_a_saved_config_of_before_keeps_its_meaning(content, factor, expected):
    cfg = get_cfg()
    add_backbone_config(cfg)
    cfg.SOLVER.BACKBONE_LR_FACTOR = factor
    forget_unread_factor(cfg, content)
    assert cfg.SOLVER.BACKBONE_LR_FACTOR == expected


@pytest.mark.parametrize(("factor", "expected"), [(0.1, None), (1.0, 1.0)])
def test_a_config_saved_before_is_read_so(factor, expected, tmp_path):
    cfg = load_cfg(None, ["SOLVER.BACKBONE_LR_FACTOR", factor])
    path = tmp_path / "config.yaml"
    path.write_text(re.sub(r"(?m)^PLUGINS:.*\n", "", cfg.dump()))
    assert load_cfg(str(path)).SOLVER.BACKBONE_LR_FACTOR == expected
    assert load_cfg(str(path), ["SOLVER.BACKBONE_LR_FACTOR", 0.1]).SOLVER.BACKBONE_LR_FACTOR == 0.1
