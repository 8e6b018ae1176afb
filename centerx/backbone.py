"""Any detectron2 backbone followed by the up-sampling neck, as one backbone with one output."""

import math

from detectron2.layers import ShapeSpec
from detectron2.modeling import Backbone
from torch import Tensor

from centerx.dlaup_neck import DLAUpNeck
from centerx.features import finest_first
from centerx.upsample_neck import UpsampleNeck


class UpsampledBackbone(Backbone):
    """``bottom_up`` then ``neck``; its only feature is named for its stride, "p2" at stride 4.

    Args:
        bottom_up: a backbone from ``BACKBONE_REGISTRY``.
        neck: built on (some of) its ``output_shape()``.
        output_stride: of the neck.
    """

    def __init__(self, bottom_up: Backbone, neck: UpsampleNeck | DLAUpNeck, *, output_stride: int):
        super().__init__()
        self.bottom_up = bottom_up
        self.neck = neck
        self._name = f"p{int(math.log2(output_stride))}"
        self._shape = {self._name: ShapeSpec(channels=neck.out_channels, stride=output_stride)}
        strides = [feature.stride for feature in finest_first(bottom_up.output_shape())]
        # detectron2's own plain backbones say 0; the neck needs sizes at which doubling gives the finer feature's size
        self._divisibility = math.lcm(max(1, bottom_up.size_divisibility), *strides)

    # detectron2's abstract method declares no argument
    def forward(self, x: Tensor) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(N, 3, H, W) -> {"p2": (N, C, H / 4, W / 4)} at the default stride; H and W multiples of the divisibility."""
        return {self._name: self.neck(self.bottom_up(x))}

    def output_shape(self) -> dict[str, ShapeSpec]:
        return self._shape

    @property
    def size_divisibility(self) -> int:
        return self._divisibility

    @property
    def padding_constraints(self) -> dict[str, int]:
        return self.bottom_up.padding_constraints
