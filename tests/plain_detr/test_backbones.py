"""Backbones at tiny widths: any image size, and the same function as an independent implementation."""

import pytest
import timm
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_backbone
from timm.models.swin_transformer import SwinTransformer
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer

import plain_detr  # noqa: F401
from d2x.backbones.swin_v1 import SwinV1
from d2x.backbones.swin_v2 import SwinV2
from d2x.backbones.swin_v2_attention import CosineAttention, log_spaced_offsets
from d2x.backbones.timm_vit import TimmViT, window_sizes
from d2x.backbones.vit import PlainViT
from d2x.config.load import load_cfg
from plain_detr import PlainDETR
from plain_detr.rescale import rescale

# One pixel, one pixel wide or high, smaller than a window, one more than a multiple, larger than a window.
SIZES = [(1, 1), (1, 70), (70, 1), (17, 33), (129, 64)]

SWIN_V2 = ["MODEL.BACKBONE.NAME", "build_swin_v2_backbone", "MODEL.SWIN_V2.EMBED_DIM", 8]
SWIN_V2 += ["MODEL.SWIN_V2.DEPTHS", (1, 1, 2, 2), "MODEL.SWIN_V2.NUM_HEADS", (1, 1, 2, 2)]
SWIN_V1 = ["MODEL.BACKBONE.NAME", "build_swin_v1_backbone", "MODEL.SWIN_V1.EMBED_DIM", 8]
SWIN_V1 += ["MODEL.SWIN_V1.DEPTHS", (1, 1, 2, 1), "MODEL.SWIN_V1.NUM_HEADS", (1, 1, 2, 2)]
VIT = ["MODEL.BACKBONE.NAME", "build_vit_backbone", "MODEL.VIT.EMBED_DIM", 16, "MODEL.VIT.DEPTH", 3]
VIT += ["MODEL.VIT.NUM_HEADS", 2, "MODEL.VIT.WINDOW_SIZE", 3, "MODEL.VIT.GLOBAL_BLOCKS", (1,)]
TIMM_VIT = ["MODEL.BACKBONE.NAME", "build_timm_vit_backbone", "MODEL.TIMM_VIT.NAME", "test_vit"]
R50 = ["MODEL.BACKBONE.NAME", "build_resnet_backbone", "MODEL.RESNETS.OUT_FEATURES", ("res5",)]

# name -> (config, the output used, its stride)
BACKBONES = {
    "swin_v2": (SWIN_V2, "p5", 32),
    "swin_v2_windows_only": ([*SWIN_V2, "MODEL.SWIN_V2.GLOBAL_BLOCKS", ((-1,),) * 4], "p5", 32),
    "swin_v2_stride_16": ([*SWIN_V2, "MODEL.SWIN_V2.OUT_FEATURES", ["p4"]], "p4", 16),
    "swin_v1": (SWIN_V1, "p5", 32),
    "vit": (VIT, "p4", 16),
    "vit_relative_position": ([*VIT, "MODEL.VIT.RELATIVE_POSITION", True], "p4", 16),
    "timm_vit": ([*TIMM_VIT, "MODEL.TIMM_VIT.LAYERS", (2,)], "p4", 16),
    "timm_vit_windows": ([*TIMM_VIT, "MODEL.TIMM_VIT.WINDOWS", 3], "p4", 16),
    "dinov3": ([*TIMM_VIT, "MODEL.TIMM_VIT.NAME", "vit_tiny_patch16_dinov3_qkvb"], "p4", 16),
    "timm_cnn": (["MODEL.BACKBONE.NAME", "build_timm_backbone", "MODEL.TIMM.NAME", "test_resnet"], "res5", 32),
    "r50": (R50, "res5", 32),
    "torchvision_r18": (["MODEL.BACKBONE.NAME", "build_torchvision_resnet_backbone"], "res5", 32),
    "small_conv": (["MODEL.BACKBONE.NAME", "build_small_conv_backbone"], "res4", 16),
}
ANY_SIZE = ("swin", "vit", "dinov3", "small")  # these take any size themselves; the rest ask for padding


def config(options: list) -> CfgNode:
    return load_cfg(None, ["MODEL.DEVICE", "cpu", "MODEL.META_ARCHITECTURE", "PlainDETR", *options])


def random_weights(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """No layer at its initial value: norms and scales that start as constants would hide what they multiply."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            around_one = parameter.ndim == 1 and "norm" in name and name.endswith("weight")
            parameter.copy_(1 + 0.1 * noise if around_one else 0.1 * noise)
    return model.eval()


@pytest.mark.parametrize("name", [name for name in BACKBONES if name.startswith(ANY_SIZE)])
def test_any_size_gives_a_map_rounded_up(name):
    options, feature, stride = BACKBONES[name]
    backbone = build_backbone(config(options)).eval()
    spec = backbone.output_shape()[feature]
    assert spec.stride == stride
    assert backbone.size_divisibility == 0
    for height, width in SIZES:
        with torch.no_grad():
            maps = backbone(torch.randn(2, 3, height, width))
        assert maps[feature].shape == (2, spec.channels, -(-height // stride), -(-width // stride)), (height, width)
        assert maps[feature].isfinite().all()


@pytest.mark.parametrize("name", BACKBONES)
def test_detector_gets_stride_16_features_for_any_size(name):
    options, feature, _ = BACKBONES[name]
    head = {"IN_FEATURE": feature, "HIDDEN_DIM": 32, "NUM_HEADS": 2, "NUM_CLASSES": 2, "DECODER_LAYERS": 1}
    head |= {"FEEDFORWARD_DIM": 32, "NUM_QUERIES": 3, "ONE_TO_MANY.QUERIES": 0}
    flat = [item for key, value in head.items() for item in (f"MODEL.PLAIN_DETR.{key}", value)]
    model = PlainDETR(config([*options, *flat])).eval()
    images = [torch.randn(3, height, width) for height, width in SIZES]
    with torch.no_grad():
        memory = model.encode(images)
    rows, columns = (max(-(-image.shape[axis] // 16) for image in images) for axis in (1, 2))
    assert memory.features.shape == (len(images), 32, rows, columns)
    assert memory.features.isfinite().all()


@pytest.mark.parametrize("name", ["swin_v2", "swin_v1", "vit", "timm_vit_trained"])
def test_gradients_reach_every_parameter_also_with_checkpointing(name):
    options = {**BACKBONES, "timm_vit_trained": ([*TIMM_VIT, "MODEL.TIMM_VIT.FROZEN", False], "p4", 16)}[name][0]
    key = {"swin_v2": "SWIN_V2", "swin_v1": "SWIN_V1", "vit": "VIT", "timm_vit_trained": "TIMM_VIT"}[name]
    options = [*options, f"MODEL.{key}.DROP_PATH", 0.0]
    image, gradients = torch.randn(1, 3, 65, 40), []
    for checkpointed in (False, True):
        backbone = build_backbone(config([*options, f"MODEL.{key}.ACTIVATION_CHECKPOINTING", checkpointed]))
        random_weights(backbone).train()
        sum(value.sum() for value in backbone(image).values()).backward()
        missing = {n for n, p in backbone.named_parameters() if p.grad is None}
        assert {n for n in missing if not n.startswith(("model.fc_norm", "model.norm"))} == set()
        gradients.append({n: p.grad for n, p in backbone.named_parameters() if p.grad is not None})
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("pretrained", [0, 6])
def test_swin_v2_is_timms_where_no_padding_is_needed(pretrained):
    """timm's keeps norms of queries at least 1e-12 where ours adds 5e-5, and has another LayerNorm epsilon."""
    theirs = SwinTransformerV2(
        img_size=128,
        window_size=4,
        embed_dim=16,
        depths=(2, 2),
        num_heads=(2, 4),
        num_classes=0,
        drop_path_rate=0.0,
        pretrained_window_sizes=(pretrained,) * 2,
    )
    random_weights(theirs)
    ours = SwinV2(
        embed_dim=16,
        depths=(2, 2),
        num_heads=(2, 4),
        window_size=4,
        pretrained_window_sizes=(pretrained,) * 2,
        global_blocks=((-1,),) * 2,
        out_features=("p3",),
    )
    state = {name.replace("layers.1.downsample", "layers.0.downsample"): v for name, v in theirs.state_dict().items()}
    state |= {"norm1.weight": state.pop("norm.weight"), "norm1.bias": state.pop("norm.bias")}
    ours.load_state_dict({name: value for name, value in state.items() if name in ours.state_dict()})
    image = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(
            ours.eval()(image)["p3"], theirs.forward_features(image).permute(0, 3, 1, 2), rtol=0, atol=2e-3
        )


def test_swin_v2_whole_map_attention_is_one_window_of_the_maps_size():
    window = CosineAttention(dim=8, num_heads=2, window=5, pretrained_window=7)
    whole = CosineAttention(dim=8, num_heads=2, window=0, pretrained_window=7)
    whole.load_state_dict(random_weights(window).state_dict())
    x = torch.randn(2, 25, 8)
    torch.testing.assert_close(whole(x, (5, 5)), window(x, (5, 5)))


def test_swin_v2_offsets_are_finite_on_a_grid_of_one_row():
    """The released code divides 0 by 0 there."""
    table = log_spaced_offsets((1, 3), 0)
    assert table.shape == (1, 5, 2)
    assert table[..., 0].tolist() == [[0.0] * 5]
    # offsets -2 .. 2 over a largest of 2, times 8: sign * log2(1 + 8) / 3, log2(1 + 4) / 3, 0
    assert table[0, :, 1].tolist() == pytest.approx([-1.0566, -0.7740, 0.0, 0.7740, 1.0566], abs=1e-4)


def test_swin_v2_shifted_windows_keep_far_apart_tokens_apart():
    """A change in the top left corner reaches the bottom right one only through the -100 of the released code."""
    sizes = {"embed_dim": 8, "depths": (2,), "num_heads": (1,), "window_size": 4, "pretrained_window_sizes": (0,)}
    images = torch.randn(1, 3, 64, 64).repeat(2, 1, 1, 1)
    images[1, :, :4, :4] += 1.0
    model = random_weights(SwinV2(**sizes, global_blocks=((-1,),), out_features=("p2",)))
    with torch.no_grad():
        one, other = model(images)["p2"]
    assert not torch.equal(one[:, 0, 0], other[:, 0, 0])
    assert torch.equal(one[:, -4:, -4:], other[:, -4:, -4:])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"num_heads": (1, 1)}, "4 stages .* but heads for 2"),
        ({"out_features": ("p6",)}, "out_features .*p6.* must be among p2, p3, p4, p5"),
        ({"out_features": ()}, "must be among"),
        ({"embed_dim": 10}, "10 channels cannot be split over 3 heads"),
    ],
)
def test_swin_v2_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        SwinV2(**change)


def test_swin_v1_is_timms_where_no_padding_is_needed():
    theirs = SwinTransformer(
        img_size=128, window_size=4, embed_dim=16, depths=(2, 2), num_heads=(2, 4), num_classes=0, drop_path_rate=0.0
    )
    random_weights(theirs)
    ours = SwinV1(embed_dim=16, depths=(2, 2), num_heads=(2, 4), window_size=4, out_features=("p3",))
    state = {name.replace("layers.1.downsample", "layers.0.downsample"): v for name, v in theirs.state_dict().items()}
    state |= {"norm1.weight": state.pop("norm.weight"), "norm1.bias": state.pop("norm.bias")}
    ours.load_state_dict({name: value for name, value in state.items() if name in ours.state_dict()}, strict=False)
    image = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        torch.testing.assert_close(
            ours.eval()(image)["p3"], theirs.forward_features(image).permute(0, 3, 1, 2), rtol=0, atol=1e-4
        )


def test_vit_with_global_blocks_alone_is_timms():
    theirs = random_weights(VisionTransformer(img_size=64, embed_dim=16, depth=2, num_heads=2, num_classes=0))
    with torch.no_grad():
        theirs.cls_token.zero_()
    ours = PlainViT(
        embed_dim=16, depth=2, num_heads=2, global_blocks=(0, 1), pretrain_image_size=64, window_size=0
    ).eval()
    ours.load_state_dict({name: value for name, value in theirs.state_dict().items() if name in ours.state_dict()})
    # Without the class token, which ViTDet drops, timm's blocks see the same tokens as ours.
    image = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        tokens = theirs.patch_embed(image) + theirs.pos_embed[:, 1:]
        expected = theirs.blocks(tokens).transpose(1, 2).unflatten(2, (4, 4))
        torch.testing.assert_close(ours(image)["p4"], expected, rtol=0, atol=1e-5)


def test_vit_refuses_a_global_block_it_does_not_have():
    with pytest.raises(ValueError, match=r"global_blocks \[2, 5\] must be among 0 to 3"):
        PlainViT(depth=4, global_blocks=(2, 5))


@pytest.mark.parametrize("frozen", [True, False])
def test_timm_vit_puts_the_last_blocks_side_by_side(frozen):
    backbone = TimmViT(name="test_vit", layers=2, normalise=False, frozen=frozen)
    image = torch.randn(1, 3, 64, 96)
    joined = backbone(image)["p4"]
    assert joined.requires_grad is not frozen
    model = timm.create_model("test_vit", num_classes=0, dynamic_img_size=True)
    model.load_state_dict(backbone.model.state_dict())
    with torch.no_grad():
        parts = model.forward_intermediates(image, indices=2, intermediates_only=True)
    torch.testing.assert_close(joined, torch.cat(parts, dim=1), rtol=0, atol=1e-5)
    # Block 4 and 5 of 6, named instead of counted.
    depth = len(model.blocks)
    named = TimmViT(name="test_vit", layers=[depth - 2, depth - 1], normalise=False)
    named.load_state_dict(backbone.state_dict())
    torch.testing.assert_close(named(image)["p4"], joined)


def test_frozen_timm_vit_stays_in_evaluation_mode_and_trains_nothing():
    backbone = TimmViT(name="test_vit", frozen=True, drop_path_rate=0.5).train()
    assert backbone.training and not backbone.model.training
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(backbone(image)["p4"], backbone(image)["p4"])


def test_timm_vit_windows_see_only_themselves_and_the_whole_image():
    backbone = random_weights(TimmViT(name="test_vit", windows=2))
    image = torch.randn(1, 3, 64, 64)
    changed = image.clone()
    changed[..., 32:, 32:] += 1
    with torch.no_grad():
        one, other = backbone(image)["p4"], backbone(changed)["p4"]
    channels = one.shape[1] // 2
    assert torch.equal(one[:, channels:, :2], other[:, channels:, :2])  # the upper windows
    assert not torch.equal(one[:, channels:, 2:, 2:], other[:, channels:, 2:, 2:])
    assert not torch.equal(one[:, :channels, 0, 0], other[:, :channels, 0, 0])


@pytest.mark.parametrize(
    "size, windows, expected",
    [
        (96, 3, [32, 32, 32]),
        (112, 3, [48, 48, 16]),  # 112 // 3 = 37 px -> 3 patches, and what is left
        (16, 3, [16]),  # one patch cannot be cut
        (32, 3, [16, 16]),
    ],
)
def test_window_sizes(size, windows, expected):
    assert window_sizes(size, windows, 16) == expected


@pytest.mark.parametrize(
    "options, message",
    [
        ({"name": "vit_nowhere"}, "timm has no model 'vit_nowhere'"),
        ({"name": "test_resnet"}, "'test_resnet' is no ViT"),
        ({"name": "test_vit", "layers": 99}, "asks for blocks outside"),
        ({"name": "test_vit", "layers": [1, 0]}, "ascending"),
    ],
)
def test_timm_vit_refuses(options, message):
    with pytest.raises(ValueError, match=message):
        TimmViT(**options)


@pytest.mark.parametrize("stride, target, halve, channels", [(32, 16, True, 8), (32, 8, True, 4), (16, 64, False, 16)])
def test_rescale_changes_stride_and_channels(stride, target, halve, channels):
    stack = rescale(16, stride, target, halve=halve)
    assert stack.out_channels == channels
    size = 8 * stride // target
    assert stack(torch.randn(1, 16, 8, 8)).shape == (1, channels, size, size)


@pytest.mark.parametrize("arguments", [(16, 32, 12, False), (3, 32, 16, True)])
def test_rescale_refuses(arguments):
    with pytest.raises(ValueError, match="power of two|cannot halve"):
        rescale(*arguments[:3], halve=arguments[3])


def test_rescale_to_the_same_stride_is_nothing():
    x = torch.randn(1, 3, 2, 2)
    assert torch.equal(rescale(3, 16, 16)(x), x)
