"""Weight files of every origin fill a backbone, and the report says what became of each tensor."""

import argparse

import pytest
import timm
import torch
import torchvision
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone import build_resnet_backbone
from safetensors.torch import save_file
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from yacs.config import CfgNode

import plain_detr  # noqa: F401
from d2x.backbones.swin_v1 import SwinV1
from d2x.backbones.swin_v2 import SwinV2
from d2x.backbones.timm_vit import TimmViT
from d2x.backbones.vit import PlainViT
from d2x.backbones.weights import load_backbone_weights, weight_hooks
from d2x.config.load import load_cfg
from tests.plain_detr.test_backbones import random_weights

SIZES = {"embed_dim": 8, "depths": (1, 2), "num_heads": (1, 2)}


def swin_v1(**changes) -> SwinV1:
    return random_weights(SwinV1(**{**SIZES, "window_size": 4, "out_features": ("p3",), **changes}), seed=1)


def swin_v2(**changes) -> SwinV2:
    fixed = {"window_size": 4, "pretrained_window_sizes": (4, 4), "global_blocks": ((-1,), (-1,))}
    return random_weights(SwinV2(**{**SIZES, **fixed, "out_features": ("p3",), **changes}), seed=1)


def timm_swin(kind, **changes):
    options = {**SIZES, "img_size": 64, "window_size": 4, "num_classes": 3, "drop_path_rate": 0.0, **changes}
    return random_weights(kind(**options))


def authors_names(state: dict) -> dict:
    """Microsoft's Swin files count patch merging to the stage before, and hold tables besides."""
    named = {name.replace("layers.1.downsample", "layers.0.downsample"): value for name, value in state.items()}
    named["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16, dtype=torch.int64)
    named["layers.1.blocks.1.attn_mask"] = torch.zeros(4, 16, 16)
    return named


def written(tmp_path, content, name: str = "weights.pth") -> str:
    path = str(tmp_path / name)
    if name.endswith(".safetensors"):
        save_file(content, path)
    else:
        torch.save(content, path)
    return path


def expect_output_norm_alone_missing(report):
    assert sorted(report.missing) == ["norm1.bias", "norm1.weight"]


@pytest.mark.parametrize(
    "kind, make", [(SwinTransformer, swin_v1), (SwinTransformerV2, swin_v2)], ids=["swin_v1", "swin_v2"]
)
@pytest.mark.parametrize("origin", ["authors", "timm", "simmim"])
def test_swin_of_every_origin_computes_the_same(kind, make, origin, tmp_path):
    theirs = timm_swin(kind)
    state = theirs.state_dict()
    if origin != "timm":
        state = authors_names(state)
    if origin == "simmim":
        state = {f"encoder.{name.replace('cpb_mlp', 'rpe_mlp')}": value for name, value in state.items()}
        state |= {"encoder.mask_token": torch.zeros(1, 1, 8), "decoder.0.weight": torch.zeros(3, 3)}
    ours = make()
    report = load_backbone_weights(ours, written(tmp_path, {"model": state}))
    expect_output_norm_alone_missing(report)
    assert report.interpolated == {}
    assert any("head.fc" in name for name in report.left_out)
    assert bool(report.renamed) == (origin != "authors")
    ours.norm1.load_state_dict(theirs.norm.state_dict())
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = theirs.forward_features(image).permute(0, 3, 1, 2)
        torch.testing.assert_close(ours.eval()(image)["p3"], expected, rtol=0, atol=5e-3)


@pytest.mark.parametrize("name, make", [("swin_t", swin_v1), ("swin_v2_t", swin_v2)])
def test_torchvisions_swin_files(name, make, tmp_path):
    with torch.device("meta"):
        names = torchvision.models.get_model(name).state_dict()
    source = {n: torch.empty(value.shape) for n, value in names.items()}
    for n in source:
        source[n] = torch.full_like(source[n], float(len(n)))
    window = 7 if make is swin_v1 else 8
    sizes = {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24), "window_size": window}
    if make is swin_v2:
        sizes |= {"pretrained_window_sizes": (8,) * 4, "global_blocks": ((-1,),) * 4}
    ours = make(**sizes, out_features=("p5",))
    report = load_backbone_weights(ours, written(tmp_path, source))
    assert sorted(report.missing) == ["norm3.bias", "norm3.weight"]
    assert report.renamed["layers.2.blocks.5.mlp.fc2.weight"] == "features.5.5.mlp.3.weight"
    assert report.renamed["layers.1.downsample.reduction.weight"] == "features.4.reduction.weight"
    assert sorted(report.left_out)[-2:] == ["norm.bias", "norm.weight"]
    if make is swin_v2:
        assert report.renamed["layers.0.blocks.0.attn.v_bias"] == "features.1.0.attn.qkv.bias"
        assert ours.layers[0].blocks[0].attn.v_bias.tolist() == [float(len("features.1.0.attn.qkv.bias"))] * 96


def test_swin_v1_of_another_window_gets_resized_tables(tmp_path):
    state = timm_swin(SwinTransformer, img_size=64, window_size=2).state_dict()
    ours = swin_v1()
    report = load_backbone_weights(ours, written(tmp_path, {"model": authors_names(state)}))
    table = "layers.0.blocks.0.attn.relative_position_bias_table"
    assert report.interpolated[table] == "(9, 1) -> (49, 1)"
    assert len(report.interpolated) == 3
    # The middle of the table is the offset 0, and stays so.
    assert ours.get_parameter(table)[24, 0].item() == pytest.approx(state[table][4, 0].item(), abs=1e-5)


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_mae_fills_a_plain_vit(name, tmp_path):
    theirs = random_weights(VisionTransformer(img_size=64, embed_dim=16, depth=2, num_heads=2, num_classes=0))
    state = {**theirs.state_dict(), "mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.zeros(8, 16)}
    ours = PlainViT(embed_dim=16, depth=2, num_heads=2, global_blocks=(1,), pretrain_image_size=64)
    report = load_backbone_weights(ours, written(tmp_path, state if "safe" in name else {"model": state}, name))
    assert report.missing == [] and report.renamed == {} and report.interpolated == {}
    assert sorted(report.left_out) == ["cls_token", "decoder_embed.weight", "mask_token", "norm.bias", "norm.weight"]
    for key, value in ours.state_dict().items():
        assert torch.equal(value, state[key])


@pytest.mark.parametrize("class_token", [True, False])
def test_position_embedding_of_another_image_size_is_resized(class_token, tmp_path):
    options = {"embed_dim": 16, "depth": 1, "num_heads": 2, "num_classes": 0, "class_token": class_token}
    state = VisionTransformer(img_size=64, global_pool="avg", **options).state_dict()
    state["pos_embed"] = torch.linspace(0, 1, 4)[None, :, None, None].expand(1, 4, 4, 16).flatten(1, 2)
    if class_token:
        state["pos_embed"] = torch.cat([torch.full((1, 1, 16), 7.0), state["pos_embed"]], dim=1)
    ours = PlainViT(embed_dim=16, depth=1, num_heads=2, global_blocks=(0,), pretrain_image_size=128)
    report = load_backbone_weights(ours, written(tmp_path, state))
    assert report.interpolated == {"pos_embed": f"(1, {16 + class_token}, 16) -> (1, 65, 16)"}
    assert ours.pos_embed[0, 0, 0].item() == (7.0 if class_token else 0.0)
    rows = ours.pos_embed[0, 1:, 0].view(8, 8)
    torch.testing.assert_close(rows[:, 0], rows[:, 5])
    assert (rows[1:, 0] > rows[:-1, 0]).all()


def test_relative_positions_of_another_window_are_resized(tmp_path):
    sizes = {"embed_dim": 16, "depth": 2, "num_heads": 2, "global_blocks": (1,), "relative_position": True}
    theirs = random_weights(PlainViT(**sizes, window_size=4))
    ours = PlainViT(**sizes, window_size=7)
    report = load_backbone_weights(ours, written(tmp_path, theirs.state_dict()))
    assert report.interpolated == {
        "blocks.0.attn.rel_pos_h": "(7, 8) -> (13, 8)",
        "blocks.0.attn.rel_pos_w": "(7, 8) -> (13, 8)",
    }


def test_dinov3_in_its_own_names(tmp_path):
    ours = TimmViT(name="vit_small_patch16_dinov3", layers=1)
    original = {"storage_tokens": torch.rand(1, 4, 384), "cls_token": torch.rand(1, 1, 384)}
    original |= {"mask_token": torch.zeros(1, 384), "rope_embed.periods": torch.ones(16)}
    original |= {"patch_embed.proj.weight": torch.rand(384, 3, 16, 16), "patch_embed.proj.bias": torch.rand(384)}
    original |= {f"norm.{part}": torch.rand(384) for part in ("weight", "bias")}
    for i in range(12):
        shapes = {"attn.qkv.weight": (1152, 384), "attn.proj.weight": (384, 384), "attn.proj.bias": (384,)}
        shapes |= {"attn.qkv.bias": (1152,), "attn.qkv.bias_mask": (1152,), "ls1.gamma": (384,), "ls2.gamma": (384,)}
        shapes |= {f"norm{n}.{part}": (384,) for n in (1, 2) for part in ("weight", "bias")}
        shapes |= {"mlp.fc1.weight": (1536, 384), "mlp.fc1.bias": (1536,)}
        shapes |= {"mlp.fc2.weight": (384, 1536), "mlp.fc2.bias": (384,)}
        original |= {f"blocks.{i}.{name}": torch.rand(shape) for name, shape in shapes.items()}
    for i in range(12):
        original[f"blocks.{i}.attn.qkv.bias"].zero_()
    report = load_backbone_weights(ours, written(tmp_path, original))
    assert report.missing == []
    assert torch.equal(ours.model.reg_token, original["storage_tokens"])
    assert torch.equal(ours.model.blocks[3].gamma_2, original["blocks.3.ls2.gamma"])
    assert report.renamed["model.reg_token"] == "storage_tokens"
    assert {"mask_token", "rope_embed.periods"} <= set(report.left_out)


def test_timm_vit_from_timms_own_file(tmp_path):
    theirs = random_weights(timm.create_model("test_vit"))
    ours = TimmViT(name="test_vit", layers=1)
    report = load_backbone_weights(ours, written(tmp_path, theirs.state_dict(), "timm.safetensors"))
    assert report.missing == []
    assert sorted(report.left_out) == ["head.bias", "head.weight"]
    assert torch.equal(ours.model.blocks[0].attn.qkv.weight, theirs.blocks[0].attn.qkv.weight)


@pytest.mark.parametrize("library", ["torchvision", "timm"])
def test_resnet_50_computes_the_same(library, tmp_path):
    torch.manual_seed(0)
    make = torchvision.models.resnet50 if library == "torchvision" else lambda: timm.create_model("resnet50")
    theirs = make().eval()
    for name, buffer in theirs.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5)
        elif name.endswith("running_mean"):
            buffer.normal_(std=0.1)
    cfg = load_cfg(None, ["MODEL.RESNETS.STRIDE_IN_1X1", False, "MODEL.RESNETS.OUT_FEATURES", ["res5"]])
    ours = build_resnet_backbone(cfg, ShapeSpec(channels=3)).eval()
    report = load_backbone_weights(ours, written(tmp_path, theirs.state_dict()))
    assert report.missing == []
    assert [name for name in report.left_out if not name.endswith("num_batches_tracked")] == ["fc.weight", "fc.bias"]
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        got = ours(x)["res5"]
        h = theirs.maxpool((theirs.relu if library == "torchvision" else theirs.act1)(theirs.bn1(theirs.conv1(x))))
        expected = theirs.layer4(theirs.layer3(theirs.layer2(theirs.layer1(h))))
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def test_backbone_of_a_detector_checkpoint(tmp_path):
    theirs = swin_v2()
    state = {f"backbone.{name}": value for name, value in random_weights(theirs, seed=2).state_dict().items()}
    ours = swin_v2()
    report = load_backbone_weights(ours, written(tmp_path, {"model": {**state, "level_embed": torch.zeros(1, 4)}}))
    assert report.missing == [] and report.left_out == []
    assert torch.equal(ours.norm1.weight, theirs.norm1.weight)


def test_settings_beside_the_weights_do_not_stop_the_file_from_loading(tmp_path):
    """SimMIM's files hold a yacs config, DETR's a command line; both are plain data."""
    settings = CfgNode({"MODEL": CfgNode({"TYPE": "swinv2"}), "TAG": "x"})
    content = {"model": authors_names(timm_swin(SwinTransformerV2).state_dict()), "config": settings}
    content["args"] = argparse.Namespace(lr=1e-4)
    expect_output_norm_alone_missing(load_backbone_weights(swin_v2(), written(tmp_path, content)))


def test_the_report_reads_as_four_lines(tmp_path):
    state = timm_swin(SwinTransformer, window_size=2).state_dict()
    text = str(load_backbone_weights(swin_v1(), written(tmp_path, state)))
    lines = text.splitlines()
    assert len(lines) == 4
    assert lines[0].endswith("renamed, e.g. layers.1.downsample.norm.weight -> layers.0.downsample.norm.weight")
    assert "interpolated (3): layers.0.blocks.0.attn.relative_position_bias_table (9, 1) -> (49, 1)" in lines[1]
    assert "head.fc.weight" in lines[2]
    assert lines[3].endswith("norm1.weight, norm1.bias")


def test_files_that_do_not_fit_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.pth"):
        load_backbone_weights(swin_v2(), str(tmp_path / "nowhere.pth"))
    path = written(tmp_path, {"conv1.weight": torch.zeros(2)}, "other.pth")
    with pytest.raises(ValueError, match="other.pth: weights of another network: it has 0 of .* SwinV2.*'conv1.w"):
        load_backbone_weights(swin_v2(), path)
    path = written(tmp_path, authors_names(timm_swin(SwinTransformerV2, embed_dim=16).state_dict()), "wide.pth")
    with pytest.raises(ValueError, match=r"wide.pth: patch_embed.proj.weight has shape \(16, .* needs \(8, "):
        load_backbone_weights(swin_v2(), path)


def test_hook_only_where_the_config_asks_for_it():
    model = torch.nn.Module()
    model.backbone = swin_v2()
    file = ["MODEL.BACKBONE.WEIGHTS", "backbone.pth"]
    assert weight_hooks(load_cfg(), model) == []
    assert len(weight_hooks(load_cfg(None, file), model)) == 1
    assert weight_hooks(load_cfg(None, [*file, "MODEL.WEIGHTS", "detector.pth"]), model) == []
