"""Any timm vision transformer of one resolution (DINOv3 above all): several blocks' tokens side by side as one map."""

import contextlib
from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from torch import Tensor

from d2x.backbones.base import ImageBackbone, arguments
from d2x.backbones.timm import from_release
from d2x.backbones.vit import pad_to_patches

# Models that timm lacks: the sizes in which they differ from one that it has. DINOv3's ViT-L+ is its ViT-H+, smaller.
_RESIZED: dict[str, tuple[str, dict[str, Any]]] = {
    f"vit_large_plus_patch16_dinov3{bias}": (
        f"vit_huge_plus_patch16_dinov3{bias}",
        {"embed_dim": 1024, "depth": 24, "num_heads": 16},
    )
    for bias in ("", "_qkvb")
}


class TimmViT(ImageBackbone):
    """A timm ViT whose chosen blocks' outputs are concatenated over channels (DINOv3's detector, arXiv:2508.10104).

    Args:
        name: timm model with ``forward_intermediates`` and one resolution, such as "vit_small_patch16_dinov3"; also
            "vit_large_plus_patch16_dinov3" and that with "_qkvb", which timm may lack. Only those with "_qkvb" have the
            biases of query and value that are in DINOv3's files (in all but the 7B's; most are zeros).
        layers: the last n blocks, or block indices.
        normalise: apply the ViT's final norm to every chosen output.
        frozen: no parameter is trained, no graph is kept, and the model stays in evaluation mode.
        windows: with n > 1 the image is cut into n x n windows (whole patches each), every window goes through the ViT
            alone, and the result is joined to that of the whole image resized to one window (first in the channels,
            resized back): large images for a ViT trained on small ones.
        drop_path_rate: stochastic depth of the last block.
        activation_checkpointing: recompute blocks in the backward pass.

    Outputs: ``{"p4": (B, C, ceil(H / 16), ceil(W / 16))}`` for patches of 16 pixels, with C = embedding width times
    number of layers, twice that with windows. Images are padded right and bottom with zeros to whole patches.

    Raises:
        ValueError: no such model, or not one of this kind.
    """

    def __init__(
        self,
        *,
        name: str,
        layers: int | Sequence[int] = 1,
        normalise: bool = True,
        frozen: bool = False,
        windows: int = 1,
        drop_path_rate: float = 0.0,
        activation_checkpointing: bool = False,
    ):
        super().__init__()
        models = timm.list_models()
        known, sizes = (name, {}) if name in models else _RESIZED.get(name, (name, {}))
        if known not in models:
            raise ValueError(f"MODEL.TIMM_VIT.NAME: timm has no model '{name}'")
        self.model: Any  # timm says no more of what it creates than that it is a module
        try:
            self.model = timm.create_model(
                known, num_classes=0, dynamic_img_size=True, drop_path_rate=drop_path_rate, **sizes
            )
        except TypeError as error:
            raise ValueError(f"MODEL.TIMM_VIT.NAME: '{name}' is no ViT that takes images of any size") from error
        count = len(self.model.blocks)
        self.layers = list(range(count - layers, count)) if isinstance(layers, int) else list(layers)
        if not self.layers or any(not 0 <= index < count for index in self.layers):
            raise ValueError(f"MODEL.TIMM_VIT.LAYERS: {layers} asks for blocks outside 0 to {count - 1} of '{name}'")
        if sorted(self.layers) != self.layers:
            raise ValueError(f"MODEL.TIMM_VIT.LAYERS: {layers} must be in ascending order")
        self.name, self.normalise, self.frozen, self.windows = name, normalise, frozen, windows
        self.patch_size = self.model.patch_embed.patch_size[0]
        self.model.set_grad_checkpointing(activation_checkpointing)
        if frozen:
            self.model.requires_grad_(False)
            self.model.eval()
        self._out_features = ["p4"]
        self._out_feature_strides = {"p4": self.patch_size}
        self._out_feature_channels = {"p4": self.model.embed_dim * len(self.layers) * (2 if windows > 1 else 1)}

    def extra_repr(self) -> str:
        return self.name

    def from_release(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """timm's names for the original release of this architecture, such as DINOv3's files."""
        return from_release(self.model, state)

    def train(self, mode: bool = True) -> "TimmViT":
        super().train(mode)
        if self.frozen:
            self.model.eval()
        return self

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W), normalised, of any size -> see the class."""
        with torch.no_grad() if self.frozen else contextlib.nullcontext():
            images = pad_to_patches(images, self.patch_size)
            return {"p4": self._windowed(images) if self.windows > 1 else self._features(images)}

    def _features(self, images: Tensor) -> Tensor:
        """(B, 3, H, W), whole patches -> (B, C, H / patch, W / patch)."""
        maps = self.model.forward_intermediates(
            images, indices=self.layers, norm=self.normalise, stop_early=True, intermediates_only=True
        )
        return torch.cat(maps, dim=1)

    def _windowed(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        rows, columns = (window_sizes(size, self.windows, self.patch_size) for size in (height, width))
        joined = torch.cat(
            [
                torch.cat([self._features(part) for part in band.split(columns, dim=3)], dim=3)
                for band in images.split(rows, dim=2)
            ],
            dim=2,
        )
        small = F.interpolate(images, (rows[0], columns[0]), mode="bilinear", antialias=True)
        whole = F.interpolate(self._features(small), joined.shape[-2:], mode="bilinear", antialias=True)
        return torch.cat([whole, joined], dim=1)


def window_sizes(size: int, windows: int, patch_size: int) -> list[int]:
    """Cut a side of ``size`` pixels (whole patches) into at most ``windows`` parts of whole patches.

    All but the last have ``ceil((size // windows) / patch_size)`` patches, at least one; the last takes what is left.
    """
    part = max(-(-(size // windows) // patch_size), 1) * patch_size
    full = min((size - 1) // part, windows - 1)
    return [part] * full + [size - part * full]


@BACKBONE_REGISTRY.register()
def build_timm_vit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmViT:
    """``MODEL.BACKBONE.NAME`` "build_timm_vit_backbone"; settings from ``MODEL.TIMM_VIT``."""
    options = arguments(cfg.MODEL.TIMM_VIT, DROP_PATH="drop_path_rate")
    if len(options["layers"]) == 1:
        options["layers"] = options["layers"][0]
    return TimmViT(**options)
