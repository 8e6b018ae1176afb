"""A residual network small enough to train from nothing on two CPU cores."""

import math
from collections.abc import Sequence
from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.resnet import BasicBlock
from torch import nn

from d2x.backbones.base import StagedBackbone, arguments


class SmallResNet(StagedBackbone):
    """A stem of two 3x3 convolutions to stride 4, then stages of basic blocks (arXiv:1512.03385).

    detectron2's own ResNet has fixed widths, a 7x7 stem with max pooling made for 224-pixel photographs, and needs
    widths that are multiples of 32 for group norm; the blocks are detectron2's. Stages after the last output wanted
    are not built. The default widths have 1.2 million parameters, 0.3 million up to "res4" at widths (32, 64, 96).

    Args:
        widths: channels of each stage.
        blocks: basic blocks in each stage.
        norm: "GN" (group norm of 8 channels a group; independent of the batch) or "BN".
        out_features: among "res2" (stride 4) to "res5" (stride 32).

    Outputs: ``{name: (N, width, ceil(H / stride), ceil(W / stride))}`` for any H, W >= 1.

    Raises:
        ValueError: widths and blocks of different length, an unknown norm or output.
    """

    stem_names, stage_names = ("stem",), ("res2", "res3", "res4", "res5")

    def __init__(
        self,
        *,
        widths: Sequence[int] = (32, 64, 128, 256),
        blocks: Sequence[int] = (1, 1, 1, 1),
        norm: str = "GN",
        out_features: Sequence[str] = ("res4",),
    ):
        super().__init__()
        if len(widths) != len(blocks):
            raise ValueError(f"MODEL.SMALL_RESNET: {len(widths)} WIDTHS but {len(blocks)} BLOCKS")
        if any(a == b for a, b in zip(widths, widths[1:])):  # detectron2's block would leave out the strided shortcut
            raise ValueError(f"MODEL.SMALL_RESNET.WIDTHS {list(widths)}: neighbours must differ")
        if norm not in ("GN", "BN"):
            raise ValueError(f"MODEL.SMALL_RESNET.NORM '{norm}' must be GN or BN")
        self._set_stages("MODEL.SMALL_RESNET.OUT_FEATURES", out_features, widths)
        make_norm: Any = _group_norm if norm == "GN" else norm  # detectron2 takes either, its types say str
        stem = max(widths[0] // 2, 1)
        self.stem = nn.Sequential(_convolution(3, stem, make_norm), _convolution(stem, widths[0], make_norm))
        channels = widths[0]
        for i, name in enumerate(self._stages):
            stage = []
            for j in range(blocks[i]):
                stride = 2 if i and not j else 1
                stage.append(BasicBlock(channels, widths[i], stride=stride, norm=make_norm))
                channels = widths[i]
            self.add_module(name, nn.Sequential(*stage))


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(channels, max(channels // 8, 1)), channels)


def _convolution(in_channels: int, out_channels: int, norm) -> Conv2d:
    layer = Conv2d(
        in_channels,
        out_channels,
        kernel_size=3,
        stride=2,
        padding=1,
        bias=False,
        norm=get_norm(norm, out_channels),
        activation=nn.ReLU(inplace=True),
    )
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


@BACKBONE_REGISTRY.register()
def build_small_conv_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> SmallResNet:
    """``MODEL.BACKBONE.NAME`` "build_small_conv_backbone"; sizes from ``MODEL.SMALL_RESNET``."""
    return SmallResNet(**arguments(cfg.MODEL.SMALL_RESNET))


def add_small_resnet_config(cfg: CfgNode) -> None:
    """Declare ``MODEL.SMALL_RESNET.*``."""
    cfg.MODEL.SMALL_RESNET = CfgNode()
    cfg.MODEL.SMALL_RESNET.WIDTHS = [32, 64, 128, 256]  # channels at strides 4, 8, 16, 32
    cfg.MODEL.SMALL_RESNET.BLOCKS = [1, 1, 1, 1]  # basic blocks per stage
    cfg.MODEL.SMALL_RESNET.NORM = "GN"  # or "BN"
    cfg.MODEL.SMALL_RESNET.OUT_FEATURES = ["res4"]  # among res2 (stride 4) to res5 (stride 32)
