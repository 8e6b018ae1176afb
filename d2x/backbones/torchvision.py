"""torchvision's classification networks as detectron2 backbones that load torchvision's weight files unchanged."""

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor, nn
from torchvision.models import get_model_weights, regnet, resnet

from d2x.backbones.base import StagedBackbone

# depth -> (block, blocks per stage)
RESNETS = {
    18: (resnet.BasicBlock, (2, 2, 2, 2)),
    34: (resnet.BasicBlock, (3, 4, 6, 3)),
    50: (resnet.Bottleneck, (3, 4, 6, 3)),
    101: (resnet.Bottleneck, (3, 4, 23, 3)),
    152: (resnet.Bottleneck, (3, 8, 36, 3)),
}
# Designed widths (arXiv:2003.13678, tables 5 and 6): depth, w_0, w_a, w_m, group width. "y" has squeeze-excitation.
REGNETS = {
    "x_200mf": (13, 24, 36.44, 2.49, 8),
    "x_400mf": (22, 24, 24.48, 2.54, 16),
    "x_800mf": (16, 56, 35.73, 2.28, 16),
    "x_1_6gf": (18, 80, 34.01, 2.25, 24),
    "x_3_2gf": (25, 88, 26.31, 2.25, 48),
    "x_4gf": (23, 96, 38.65, 2.43, 40),
    "x_8gf": (23, 80, 49.56, 2.88, 120),
    "y_200mf": (13, 24, 36.44, 2.49, 8),
    "y_400mf": (16, 48, 27.89, 2.09, 8),
    "y_800mf": (14, 56, 38.84, 2.4, 16),
    "y_1_6gf": (27, 48, 20.71, 2.65, 24),
    "y_3_2gf": (21, 80, 42.63, 2.66, 24),
    "y_4gf": (22, 96, 31.41, 2.24, 64),
    "y_8gf": (17, 192, 76.82, 2.19, 56),
}
SE_RATIO = 0.25


def add_torchvision_config(cfg: CfgNode) -> None:
    """Declare ``MODEL.TORCHVISION.*``, read by "build_torchvision_resnet_backbone" and "..._regnet_backbone"."""
    node = cfg.MODEL.TORCHVISION = CfgNode()
    node.DEPTH = 18  # of the ResNet: 18, 34, 50, 101 or 152
    # Of the ResNet: channels inside the blocks of each stage; other values fit no published weights.
    node.WIDTHS = [64, 128, 256, 512]
    node.STEM_STRIDE = 4  # of the ResNet; 2 leaves out the max pooling, and every stride is half
    node.REGNET = "x_400mf"  # or another size, "x_..." or "y_..." (with squeeze-excitation), as torchvision's name ends
    # Widths of a RegNet that are no multiple of the group width become the nearest one; at a tie "up" (torchvision's
    # weights), or "even", as in the paper's code and what is trained with it (X-400MF: 384 instead of 400 channels).
    node.REGNET_ROUNDING = "up"
    node.NORM = "BN"  # or "SyncBN", "FrozenBN", "GN"
    node.FREEZE_AT = 0  # stages without gradient and with frozen statistics: 1 is the stem, 5 everything
    node.OUT_FEATURES = ["res5"]  # among res2 (stride 4; RegNet's first stage too) to res5 (stride 32)


class TorchvisionBackbone(StagedBackbone):
    """A network of torchvision's with its parameter names; ``torchvision_name`` is what it is called there."""

    torchvision_name: str

    def extra_repr(self) -> str:
        return self.torchvision_name

    def download(self, weights: str) -> dict[str, Tensor]:
        """torchvision's state dict of that name, e.g. "IMAGENET1K_V1", from its cache or the network.

        Raises:
            ValueError: torchvision has no such weights for this network, or they cannot be had (offline).
        """
        try:
            choices = get_model_weights(self.torchvision_name)
            choice = choices[weights] if weights in choices.__members__ else None
        except ValueError as error:
            raise ValueError(f"torchvision has no weights for {type(self).__name__} {self.torchvision_name}") from error
        if choice is None:
            known = ", ".join(choices.__members__)
            raise ValueError(f"torchvision has no weights '{weights}' for {self.torchvision_name}; known: {known}")
        try:
            return dict(choice.get_state_dict(progress=False, check_hash=True))
        except OSError as error:
            raise ValueError(
                f"{choice.url}: cannot be downloaded ({error}); fetch it elsewhere and set MODEL.BACKBONE.WEIGHTS to it"
            ) from error

    def freeze(self, count: int) -> None:
        """Stop the gradients of the first ``count`` of (stem, stage 1, ...) and turn their batch norms to constants."""
        parts = [self.stem_names, *([stage] for stage in self._stages.values())]
        for name in [name for part in parts[:count] for name in part]:
            module = self.get_submodule(name)
            for parameter in module.parameters():
                parameter.requires_grad = False
            self.set_submodule(name, FrozenBatchNorm2d.convert_frozen_batchnorm(module))


class TorchvisionResNet(TorchvisionBackbone):
    """ResNet (arXiv:1512.03385) with torchvision's parameter names; the strides of bottlenecks are in the 3x3.

    Args:
        depth: see ``RESNETS``.
        widths: channels inside the blocks of each stage (bottlenecks give 4 times as many), the first also the stem's.
        stem_stride: 4, or 2 to leave out the max pooling.
        norm: a detectron2 norm name.
        out_features: among "res2" to "res5".

    Raises:
        ValueError: an option is not one of those listed, or a width that the blocks cannot have.
    """

    stem_names = ("conv1", "bn1", "relu", "maxpool")
    stage_names = ("layer1", "layer2", "layer3", "layer4")

    def __init__(
        self,
        *,
        depth: int,
        widths: Sequence[int] = (64, 128, 256, 512),
        stem_stride: int = 4,
        norm: str = "BN",
        out_features: Sequence[str] = ("res5",),
    ):
        super().__init__()
        if depth not in RESNETS:
            raise ValueError(f"MODEL.TORCHVISION.DEPTH {depth} is not one of {', '.join(map(str, RESNETS))}")
        if stem_stride not in (2, 4):
            raise ValueError(f"MODEL.TORCHVISION.STEM_STRIDE must be 2 or 4, got {stem_stride}")
        self.torchvision_name = f"resnet{depth}"
        block, blocks = RESNETS[depth]
        if len(widths) != len(blocks):
            raise ValueError(f"MODEL.TORCHVISION.WIDTHS needs {len(blocks)} numbers, got {list(widths)}")
        channels = [width * block.expansion for width in widths]
        self._set_stages("MODEL.TORCHVISION.OUT_FEATURES", out_features, channels, stride=stem_stride)
        network = _WideResNet(block, blocks, widths, _norm(norm))
        self.conv1, self.bn1, self.relu = network.conv1, network.bn1, network.relu
        self.maxpool = network.maxpool if stem_stride == 4 else nn.Identity()
        for stage in self._stages.values():
            self.add_module(stage, network.get_submodule(stage))


class TorchvisionRegNet(TorchvisionBackbone):
    """RegNet (arXiv:2003.13678) with torchvision's parameter names.

    Args:
        depth, w_0, w_a, w_m, group_width: the design parameters of the paper; see ``REGNETS``.
        se_ratio: of squeeze-excitation; None for none (RegNetX).
        stem_width: channels of the stem.
        rounding: "up" or "even", see ``MODEL.TORCHVISION.REGNET_ROUNDING``.
        norm: a detectron2 norm name.
        out_features: among "res2" (stride 4) to "res5" (stride 32).
    """

    stem_names = ("stem",)
    stage_names = tuple(f"trunk_output.block{i}" for i in (1, 2, 3, 4))

    def __init__(
        self,
        *,
        depth: int,
        w_0: int,
        w_a: float,
        w_m: float,
        group_width: int,
        se_ratio: float | None = None,
        stem_width: int = 32,
        rounding: str = "up",
        norm: str = "BN",
        out_features: Sequence[str] = ("res5",),
    ):
        super().__init__()
        design, size = (depth, w_0, w_a, w_m, group_width), "y" if se_ratio else "x"
        known = (name for name, values in REGNETS.items() if values == design and name.startswith(size))
        self.torchvision_name = f"regnet_{next(known, 'custom')}"
        if rounding not in ("up", "even"):
            raise ValueError(f"MODEL.TORCHVISION.REGNET_ROUNDING '{rounding}' must be up or even")
        with torch.device("cpu"):  # torchvision computes the widths with tensors
            params = regnet.BlockParams.from_init_params(depth, w_0, w_a, w_m, group_width, se_ratio=se_ratio)
        if rounding == "even":
            widths = sorted({_regnet_width(i, w_0, w_a, w_m) for i in range(depth)})
            params.group_widths = [min(group_width, width) for width in widths]
            params.widths = [round(width / group) * group for width, group in zip(widths, params.group_widths)]
        self._set_stages("MODEL.TORCHVISION.OUT_FEATURES", out_features, params.widths)
        network = regnet.RegNet(params, stem_width=stem_width, norm_layer=_norm(norm))
        self.stem = network.stem
        stages = network.trunk_output.named_children()
        used = self._stages.values()
        self.trunk_output = nn.ModuleDict({name: m for name, m in stages if f"trunk_output.{name}" in used})


def _norm(name: str) -> Callable[..., nn.Module]:
    return partial(get_norm, name)  # pyright: ignore[reportReturnType]  None for the name "" alone


class _WideResNet(resnet.ResNet):
    """torchvision's ResNet with other widths: its constructor asks ``_make_layer`` for 64, 128, 256 and 512."""

    def __init__(self, block, blocks: Sequence[int], widths: Sequence[int], norm):
        self._widths: dict[int, int] = dict(zip((64, 128, 256, 512), widths))
        super().__init__(block, list(blocks), num_classes=1, norm_layer=norm)

    def _make_layer(self, block, planes: int, blocks: int, stride: int = 1, dilate: bool = False) -> nn.Sequential:
        width = self._widths[planes]
        if planes == 64 and width != 64:  # the first stage: a stem of 64 channels has just been made
            self.inplanes = width
            self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
            self.bn1 = self._norm_layer(width)
        return super()._make_layer(block, width, blocks, stride, dilate)


def _regnet_width(block: int, w_0: int, w_a: float, w_m: float) -> int:
    """Width of a block before it is fitted to the group width (arXiv:2003.13678, eq. 2 to 4)."""
    stage = round(math.log((w_0 + w_a * block) / w_0) / math.log(w_m))
    return round(w_0 * w_m**stage / 8) * 8


@BACKBONE_REGISTRY.register()
def build_torchvision_resnet_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> TorchvisionResNet:
    """``MODEL.BACKBONE.NAME`` "build_torchvision_resnet_backbone"; size from ``MODEL.TORCHVISION``."""
    node = cfg.MODEL.TORCHVISION
    backbone = TorchvisionResNet(
        depth=node.DEPTH,
        widths=node.WIDTHS,
        stem_stride=node.STEM_STRIDE,
        norm=node.NORM,
        out_features=node.OUT_FEATURES,
    )
    backbone.freeze(node.FREEZE_AT)
    return backbone


@BACKBONE_REGISTRY.register()
def build_torchvision_regnet_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> TorchvisionRegNet:
    """``MODEL.BACKBONE.NAME`` "build_torchvision_regnet_backbone"; size from ``MODEL.TORCHVISION``."""
    node = cfg.MODEL.TORCHVISION
    if node.REGNET not in REGNETS:
        raise ValueError(f"MODEL.TORCHVISION.REGNET '{node.REGNET}' is not one of {', '.join(REGNETS)}")
    depth, w_0, w_a, w_m, group_width = REGNETS[node.REGNET]
    backbone = TorchvisionRegNet(
        depth=depth,
        w_0=w_0,
        w_a=w_a,
        w_m=w_m,
        group_width=group_width,
        se_ratio=SE_RATIO if node.REGNET.startswith("y") else None,
        rounding=node.REGNET_ROUNDING,
        norm=node.NORM,
        out_features=node.OUT_FEATURES,
    )
    backbone.freeze(node.FREEZE_AT)
    return backbone
