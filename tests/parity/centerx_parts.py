"""Our CenterNet built from a golden case's options, loaded with its released weights."""

import torch

from centerx.backbone import UpsampledBackbone
from centerx.centernet import CenterNet
from centerx.checkpoint_keys import convert
from centerx.head import CenterHead
from centerx.losses import CenterLoss
from centerx.upsample_neck import UpsampleNeck
from d2x.backbones.torchvision import REGNETS, SE_RATIO, TorchvisionRegNet, TorchvisionResNet
from tests.parity.golden import Golden

STRIDE = 4
# In float64 what is left of a difference is the golden's own noise, and that the constants of our normalisation, 255
# times the released ones, are rounded once more. In float32 comes ours, which depends on the machine.
TIMES_NOISE = {torch.float64: 3, torch.float32: 4}
PRECISIONS = list(TIMES_NOISE)
CENTERNET = "MODEL.CENTERNET."
# Released settings that name the reduced networks, or that the model does not depend on.
IGNORED = {
    "MODEL.BACKBONE.NAME",
    "MODEL.BACKBONE.PRETRAIN",
    "MODEL.BN_TYPE",
    CENTERNET + "KD.ENABLED",
}


def backbone_for(options: dict):
    """The bottom-up network of ``{"opts": {...}, "new": {...}}``."""
    opts, new = options["opts"], options.get("new", {})
    if "regnet" in opts.get("MODEL.BACKBONE.NAME", "build_resnet"):
        if "MODEL.BACKBONE.REGNET" in new:
            size = new["MODEL.BACKBONE.REGNET"]
            keys = ("DEPTH", "W0", "WA", "WM", "GROUP_W")
            design = [size[key] for key in keys]
            se_ratio, stem = (size.get("SE_R", SE_RATIO) if size.get("SE_ON") else None), size.get("STEM_W", 32)
        else:
            name = released_regnet(opts["MODEL.BACKBONE.STR_DEPTH"])
            design, se_ratio, stem = REGNETS[name], SE_RATIO if name.startswith("y") else None, 32
        depth, w_0, w_a, w_m, group_width = design
        return TorchvisionRegNet(
            depth=depth,
            w_0=w_0,
            w_a=w_a,
            w_m=w_m,
            group_width=group_width,
            se_ratio=se_ratio,
            stem_width=stem,
            rounding="even",
        )
    widths = new.get("MODEL.BACKBONE.WIDTHS", (64, 128, 256, 512))
    return TorchvisionResNet(depth=opts.get("MODEL.BACKBONE.DEPTH", 18), widths=widths)


def released_regnet(name: str) -> str:
    """ "400x" (mega-FLOPs, family) -> our "x_400mf"; 4000 -> "4gf"."""
    flops, family = int(name[:-1]), name[-1]
    return f"{family}_{flops}mf" if flops < 1000 else f"{family}_{flops / 1000:g}gf".replace(".", "_")


def neck_conv(opts: dict) -> str:
    if not opts.get(CENTERNET + "USE_DEFORM", True):
        return "plain"
    return "modulated_deform" if opts.get(CENTERNET + "MODULATE_DEFORM", True) else "deform"


def model_for(options: dict, cls: type[CenterNet] = CenterNet, **changes) -> CenterNet:
    """A released model with everything that the goldens pin as the released code did it.

    Args:
        options: ``{"opts": {released key: value}, "new": {...}}``.
        changes: further arguments of ``cls``.
    """
    left = {key: value for key, value in options["opts"].items() if key not in IGNORED and ".KD." not in key}

    def take(key: str, default):
        return left.pop(key, default)

    bottom_up = backbone_for(options)
    for key in ("DEPTH", "STR_DEPTH"):
        take(f"MODEL.BACKBONE.{key}", None)
    channels = take(CENTERNET + "DECONV_CHANNEL", [512, 256, 128, 64])
    assert bottom_up.output_shape()["res5"].channels == channels[0]
    neck = UpsampleNeck(
        bottom_up.output_shape(),
        output_stride=take(CENTERNET + "DOWN_SCALE", STRIDE),
        channels=channels[1:],
        conv=neck_conv(options["opts"]),
        up_kernel=take(CENTERNET + "DECONV_KERNEL", [4, 4, 4]),
        up_init="bilinear_to_first_channel",
    )
    take(CENTERNET + "USE_DEFORM", None), take(CENTERNET + "MODULATE_DEFORM", None)
    num_classes = take(CENTERNET + "NUM_CLASSES", 80)
    loss = CENTERNET + "LOSS."
    criterion = CenterLoss(
        heatmap="mse" if take(loss + "MSE", False) else "focal",
        size_norm="image_sum" if take(loss + "NORM_WH", False) else "none",
        unlabelled="empty_heatmap" if take(loss + "IGNORE_UNLABEL", False) else "none",
        heatmap_weight=take(loss + "CLS_WEIGHT", 1.0),
        size_weight=take(loss + "WH_WEIGHT", 0.1),
        offset_weight=take(loss + "REG_WEIGHT", 1.0),
        min_probability=1e-12,
    )
    arguments = {
        "backbone": UpsampledBackbone(bottom_up, neck, output_stride=STRIDE),
        "head": CenterHead(in_channels=channels[-1], hidden_channels=64, num_classes=num_classes),
        "criterion": criterion,
        "num_classes": num_classes,
        "pixel_mean": [255 * value for value in take("MODEL.PIXEL_MEAN", (0.485, 0.456, 0.406))],
        "pixel_std": [255 * value for value in take("MODEL.PIXEL_STD", (0.229, 0.224, 0.225))],
        "min_overlap": take(CENTERNET + "MIN_OVERLAP", 0.7),
        "max_boxes": take(CENTERNET + "TENSOR_DIM", 128),
        "min_score": -1.0,
        "batch_independent": False,
        "centres_in_padding": True,
        "clip_boxes": False,
    }
    assert not left, f"options that this test does not know: {left}"
    return cls(**{**arguments, **changes})


def allowed(golden: Golden, group: str, dtype: torch.dtype, stated: float = 1e-4) -> float:
    """How far a whole model's results may be from a golden's, relative to the largest entry of a tensor.

    A golden's json tells by how much the original in float32 is off the same code in float64, by group of results. That
    is the measure, for the errors of a sum grow with its terms: a size head that goes up to 20 cells is not known to
    1e-4 where it is near 0.

    Args:
        dtype: in which our model computes. In float64 on any machine the same, so the noise alone counts.
        stated: the tolerance that the goldens' README states, good enough for float32.
    """
    noise = golden.info.get("float32_against_float64", {}).get(group, stated / 4)
    least = 1e-6 if dtype == torch.float64 else stated  # eight roundings: some losses are float32 sums anyway
    return max(TIMES_NOISE[dtype] * noise, least)


def check_whole(name: str, found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    """Compare with a tolerance relative to the largest entry, see ``allowed``."""
    found, expected = found.detach().double(), expected.double()
    atol = tolerance * expected.abs().max().item()
    torch.testing.assert_close(found, expected, rtol=0, atol=atol, msg=lambda text: f"{name}: {text}")


def load_released(model: CenterNet, state: dict[str, torch.Tensor]) -> None:
    """Load released weights; every tensor must find its place."""
    conversion = convert(state)
    assert conversion.unmatched == []
    model.load_state_dict(conversion.state, strict=True)


def released_state(golden: Golden, prefix: str = "state") -> dict[str, torch.Tensor]:
    return golden.group(prefix)
