"""Up-sampling neck: from the backbone's coarsest feature to the output stride, a factor of 2 a stage."""

import math
from collections.abc import Mapping, Sequence
from functools import partial

import torch
from detectron2.layers import ShapeSpec, get_norm
from torch import Tensor, nn

from centerx.deform_conv import SelfDeformConv
from centerx.features import finest_first
from d2x.errors import require_choice


class SeparableConv(nn.Sequential):
    """Depth-wise 3x3, then 1x1: the light choice for small machines."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(
            nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False),
            nn.Conv2d(in_channels, out_channels, 1),
        )


CONVS = {
    "plain": partial(nn.Conv2d, kernel_size=3, padding=1),
    "separable": SeparableConv,
    "deform": partial(SelfDeformConv, modulated=False),
    "modulated_deform": partial(SelfDeformConv, modulated=True),
}
UPSAMPLERS = ("transposed", "depthwise", "bilinear")
INITS = ("bilinear", "bilinear_to_first_channel", "random")


def make_conv(kind: str, in_channels: int, out_channels: int) -> nn.Module:
    """A convolution of ``MODEL.CENTERNET.NECK.CONV``, a key of ``CONVS``."""
    require_choice("MODEL.CENTERNET.NECK.CONV", kind, CONVS)
    return CONVS[kind](in_channels, out_channels)


def make_norm(kind: str, channels: int) -> nn.Module:
    """A detectron2 norm by its name; "" for none."""
    return get_norm(kind, channels) or nn.Identity()


def make_projection(in_channels: int, out_channels: int, norm: str) -> nn.Sequential:
    """1x1 convolution and norm, of a backbone's feature to a neck's width."""
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, 1, bias=False), make_norm(norm, out_channels))


def bilinear_kernel(size: int) -> Tensor:
    """(size, size) kernel with which a transposed convolution of stride 2 interpolates bilinearly."""
    factor = math.ceil(size / 2)
    centre = (2 * factor - 1 - factor % 2) / (2 * factor)
    line = 1 - (torch.arange(size) / factor - centre).abs()
    return line[:, None] * line


def make_upsampler(kind: str, channels: int, kernel: int, init: str) -> nn.Module:
    """A x2 up-sampling layer: learned ("transposed", "depthwise"), or fixed ("bilinear").

    Args:
        kernel: 2, 3 or 4; of the learned kinds.
        init: "bilinear": interpolates at the start, each channel to itself; "bilinear_to_first_channel": every input
            channel interpolates to output channel 0, all else is random, as the released code starts; "random".
    """
    if kind == "bilinear":
        return nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    require_choice("MODEL.CENTERNET.NECK.UP", kind, UPSAMPLERS)
    require_choice("MODEL.CENTERNET.NECK.UP_INIT", init, INITS)
    if kernel not in (2, 3, 4):
        raise ValueError(f"MODEL.CENTERNET.NECK.UP_KERNEL must be 2, 3 or 4, got {kernel}")
    groups = channels if kind == "depthwise" else 1
    layer = nn.ConvTranspose2d(
        channels,
        channels,
        kernel,
        stride=2,
        padding=(kernel - 1) // 2,
        output_padding=kernel % 2,
        groups=groups,
        bias=False,
    )
    with torch.no_grad():
        if init == "bilinear":
            own = torch.arange(channels)
            layer.weight.zero_()
            layer.weight[own, own if groups == 1 else 0] = bilinear_kernel(kernel)
        elif init == "bilinear_to_first_channel":
            layer.weight[:, 0] = bilinear_kernel(kernel)
    return layer


class UpsampleStage(nn.Module):
    """3x3 convolution, norm, ReLU, x2 up-sampling, norm, (plus a projected skip feature,) ReLU.

    Args:
        conv: "plain", "separable", "deform" or "modulated_deform".
        up, up_kernel, up_init: see ``make_upsampler``.
        norm: a detectron2 norm name.
        skip_channels: channels of the backbone feature at the stage's output stride that is added; 0 for none.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        conv: str = "plain",
        up: str = "transposed",
        up_kernel: int = 4,
        up_init: str = "bilinear",
        norm: str = "BN",
        skip_channels: int = 0,
    ):
        super().__init__()
        self.conv = make_conv(conv, in_channels, out_channels)
        self.conv_norm = make_norm(norm, out_channels)
        self.up = make_upsampler(up, out_channels, up_kernel, up_init)
        self.up_norm = make_norm(norm, out_channels)
        self.skip = make_projection(skip_channels, out_channels, norm) if skip_channels else None

    def forward(self, x: Tensor, skip: Tensor | None = None) -> Tensor:
        """(N, C_in, H, W), and (N, C_skip, 2H, 2W) if the stage has a skip -> (N, C_out, 2H, 2W)."""
        x = self.up_norm(self.up(self.conv_norm(self.conv(x)).relu()))
        if self.skip is not None:
            x = x + self.skip(skip)
        return x.relu()


class UpsampleNeck(nn.Module):
    """As many ``UpsampleStage``s as lie between the coarsest input feature and the output stride.

    Channels and strides of the inputs are read from ``input_shape``, so they are never typed in twice.

    Args:
        input_shape: the backbone's ``output_shape()``, restricted to the features to use.
        output_stride: input pixels per output cell.
        channels: output channels of the stages, first stage first; a longer list is used from its end, so that one
            setting serves backbones of any depth.
        skip: add the backbone's feature of each stage's output stride, where there is one.
        up_kernel: of ``UpsampleStage``, one for all stages or one for each.
        stage: further options of ``UpsampleStage``.

    Raises:
        ValueError: the output stride cannot be reached by doubling.
    """

    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        output_stride: int = 4,
        channels: Sequence[int] = (256, 128, 64),
        skip: bool = False,
        up_kernel: int | Sequence[int] = 4,
        **stage,
    ):
        super().__init__()
        by_stride = {feature.stride: feature for feature in finest_first(input_shape)}  # of equal strides the last
        coarsest = max(by_stride)
        ratio = coarsest / output_stride
        steps = round(math.log2(ratio)) if ratio >= 1 else -1
        if steps < 0 or output_stride * 2**steps != coarsest:
            raise ValueError(
                f"MODEL.CENTERNET.OUTPUT_STRIDE {output_stride} cannot be reached from the backbone's stride {coarsest}"
                " by doubling"
            )
        if steps > len(channels):
            raise ValueError(
                f"MODEL.CENTERNET.NECK.CHANNELS has {len(channels)} entries, but stride {coarsest} to {output_stride}"
                f" takes {steps} stages"
            )
        self.in_feature, self.out_channels, _ = by_stride[coarsest]
        self.skip_features: list[str | None] = []
        stages = []
        for step, width in enumerate(channels[len(channels) - steps :]):
            feature = by_stride.get(coarsest // 2 ** (step + 1)) if skip else None
            self.skip_features.append(feature.name if feature else None)
            skip_channels = feature.channels if feature else 0
            kernel = up_kernel if isinstance(up_kernel, int) else up_kernel[step]
            stages.append(
                UpsampleStage(self.out_channels, width, skip_channels=skip_channels, up_kernel=kernel, **stage)
            )
            self.out_channels = width
        self.stages = nn.ModuleList(stages)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Backbone features by name -> (N, ``out_channels``, Hf, Wf)."""
        x = features[self.in_feature]
        for stage, name in zip(self.stages, self.skip_features):
            x = stage(x, features[name] if name else None)
        return x
