"""Plain ViT with ViTDet's windows: detectron2's implementation, for images of any size."""

from collections.abc import Sequence
from functools import partial

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone.utils import get_abs_pos
from detectron2.modeling.backbone.vit import ViT
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from d2x.backbones.base import arguments


class PlainViT(ViT):
    """ViT backbone of ViTDet (arXiv:2203.16527): most blocks attend within windows, a few over the whole map.

    What it adds to detectron2's: images of any size (padded right and bottom with zeros to whole patches), and
    activation checkpointing by torch (detectron2's needs fairscale).

    Args:
        embed_dim, depth, num_heads: ViT-B: 768, 12, 12; ViT-L: 1024, 24, 16.
        patch_size: pixels.
        window_size: side of the window in patches.
        global_blocks: indices of the blocks that attend over the whole map; all others use windows.
        drop_path_rate: stochastic depth of the last block, linear from 0 at the first.
        pretrain_image_size: side of the square images of pre-training in pixels; sizes ``pos_embed``, which is
            interpolated to the map at hand.
        relative_position: add ViTDet's decomposed relative positions, which pre-training does not have.
        image_size: side in pixels for which the relative positions of whole-map blocks are made.
        activation_checkpointing: recompute blocks in the backward pass.

    Outputs: ``{"p4": (B, embed_dim, ceil(H / 16), ceil(W / 16))}`` for a patch size of 16.
    """

    def __init__(
        self,
        *,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        patch_size: int = 16,
        window_size: int = 14,
        global_blocks: Sequence[int] = (2, 5, 8, 11),
        drop_path_rate: float = 0.0,
        pretrain_image_size: int = 224,
        relative_position: bool = False,
        image_size: int = 1024,
        activation_checkpointing: bool = False,
    ):
        if any(not 0 <= index < depth for index in global_blocks):
            raise ValueError(f"ViT: global_blocks {list(global_blocks)} must be among 0 to {depth - 1}")
        super().__init__(
            img_size=image_size,
            patch_size=patch_size,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            drop_path_rate=drop_path_rate,
            use_rel_pos=relative_position,
            window_size=window_size,
            window_block_indexes=[i for i in range(depth) if i not in global_blocks],
            pretrain_img_size=pretrain_image_size,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),  # pyright: ignore[reportArgumentType]  typed as the class
            out_feature="p4",
        )
        self.patch_size, self.activation_checkpointing = patch_size, activation_checkpointing

    def forward(self, images: Tensor) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(B, 3, H, W), normalised, of any size -> see the class."""
        x = self.patch_embed(pad_to_patches(images, self.patch_size))
        x = x + get_abs_pos(self.pos_embed, self.pretrain_use_cls_token, (x.shape[1], x.shape[2]))
        for block in self.blocks:
            if self.activation_checkpointing and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return {"p4": x.permute(0, 3, 1, 2)}


def pad_to_patches(images: Tensor, patch_size: int) -> Tensor:
    """Pad (B, 3, H, W) right and bottom with zeros until height and width are multiples of the patch size."""
    height, width = images.shape[-2:]
    return F.pad(images, (0, -width % patch_size, 0, -height % patch_size))


@BACKBONE_REGISTRY.register()
def build_vit_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> PlainViT:
    """``MODEL.BACKBONE.NAME`` "build_vit_backbone"; sizes from ``MODEL.VIT``."""
    return PlainViT(**arguments(cfg.MODEL.VIT, DROP_PATH="drop_path_rate"))
