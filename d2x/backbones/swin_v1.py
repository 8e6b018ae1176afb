"""Swin V1 backbones: detectron2's implementation under this package's feature names.

timm's Swin shifts before it pads and builds its masks accordingly, so on maps that are no multiple of the window it
is another function than the one detection models were trained with; detectron2's pads first, as they did.
"""

from collections.abc import Sequence

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.swin import SwinTransformer
from torch import Tensor

from d2x.backbones.base import arguments


class SwinV1(SwinTransformer):
    """Swin Transformer (arXiv:2103.14030) of any input size.

    Args:
        embed_dim, depths, num_heads, window_size: as in the paper; T: 96, (2, 2, 6, 2), (3, 6, 12, 24), 7.
        drop_path_rate: stochastic depth of the last block, linear from 0 at the first.
        out_features: among "p2" (stride 4) to "p5" (stride 32).
        activation_checkpointing: recompute blocks in the backward pass.

    Outputs: ``{name: (B, C * 2**i, ceil(H / stride), ceil(W / stride))}``.
    """

    def __init__(
        self,
        *,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        drop_path_rate: float = 0.0,
        out_features: Sequence[str] = ("p5",),
        activation_checkpointing: bool = False,
    ):
        names = {f"p{i + 2}": i for i in range(len(depths))}
        if not out_features or set(out_features) - set(names):
            raise ValueError(f"Swin: out_features {list(out_features)} must be among {', '.join(names)}")
        super().__init__(
            embed_dim=embed_dim,
            depths=depths,
            num_heads=num_heads,
            window_size=window_size,
            drop_path_rate=drop_path_rate,
            out_indices=tuple(sorted(names[name] for name in out_features)),
            use_checkpoint=activation_checkpointing,
        )
        self._out_features = [f"p{i + 2}" for i in self.out_indices]
        self._out_feature_channels = {f"p{i + 2}": embed_dim * 2**i for i in self.out_indices}
        self._out_feature_strides = {f"p{i + 2}": 2 ** (i + 2) for i in self.out_indices}

    @property
    def size_divisibility(self) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        """0: any size is padded inside (the base class misspells its own attribute here)."""
        return 0

    def forward(self, images: Tensor) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(B, 3, H, W), normalised -> see the class."""
        maps = super().forward(images)
        return {f"p{i + 2}": maps[f"p{i}"] for i in self.out_indices}


@BACKBONE_REGISTRY.register()
def build_swin_v1_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SwinV1:
    """``MODEL.BACKBONE.NAME`` "build_swin_v1_backbone"; sizes from ``MODEL.SWIN_V1``."""
    return SwinV1(**arguments(cfg.MODEL.SWIN_V1, DROP_PATH="drop_path_rate"))
