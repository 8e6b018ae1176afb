"""Swin V2 as a detectron2 backbone, with whole-map attention where asked and maps of any size.

The parts of the windowed form are in timm, but not the function a plain detector needs of it; see
``swin_v2_attention`` for what is missing there. Parameter names are the field's, such as
``layers.0.blocks.0.attn.qkv.weight``, so Swin V2 files of any origin need a prefix changed at most.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from timm.layers.drop import DropPath
from timm.layers.mlp import Mlp
from timm.layers.patch_embed import PatchEmbed
from timm.models.swin_transformer_v2 import window_partition, window_reverse
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from d2x.backbones.base import ImageBackbone, arguments
from d2x.backbones.swin_v2_attention import CosineAttention, shift_mask
from d2x.backbones.tracing import recording

# Of every layer norm in here.
_layer_norm = partial(nn.LayerNorm, eps=1e-6)


class SwinV2Block(nn.Module):
    """``x + norm(attention(x))``, ``x + norm(mlp(x))`` on a map of any size.

    The map is padded right and bottom with zeros to whole windows. Padded tokens are not masked: they take part as
    keys and values, as in pre-training and in the released code.

    Args:
        window: side of the attention window in tokens; 0 attends over the whole map.
        shift: cyclic shift of the windows in tokens; 0 for none.
        shift_mask_value: see :func:`d2x.backbones.swin_v2_attention.shift_mask`.
    """

    shift_masks: Tensor

    def __init__(
        self,
        *,
        dim: int,
        num_heads: int,
        window: int,
        pretrained_window: int,
        shift: int,
        mlp_ratio: float,
        drop_path: float,
        shift_mask_value: float,
    ):
        super().__init__()
        self.window, self.shift, self.shift_mask_value = window, shift, shift_mask_value
        self.norm1 = _layer_norm(dim)
        self.attn = CosineAttention(dim=dim, num_heads=num_heads, window=window, pretrained_window=pretrained_window)
        self.drop_path = DropPath(drop_path)
        self.norm2 = _layer_norm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        if window and shift:  # the four kinds of windows, as a map of 2 x 2 of them has them
            kinds = shift_mask((2 * window, 2 * window), window, shift, shift_mask_value, torch.device("cpu"))
            self.register_buffer("shift_masks", kinds, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        attend = self._attend_in_windows if self.window else self._attend_over_map
        x = x + self.drop_path(self.norm1(attend(x)))
        return x + self.drop_path(self.norm2(self.mlp(x)))

    def _attend_over_map(self, x: Tensor) -> Tensor:
        grid_hw = (x.shape[1], x.shape[2])
        return self.attn(x.flatten(1, 2), grid_hw).view(x.shape)

    def _attend_in_windows(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        right, bottom = -width % self.window, -height % self.window
        traced = recording()
        if right or bottom or traced:
            x = F.pad(x, (0, 0, 0, right, 0, bottom))
        padded_hw, window_hw = (x.shape[1], x.shape[2]), (self.window, self.window)
        if self.shift:
            x = torch.roll(x, (-self.shift, -self.shift), dims=(1, 2))
        x = window_partition(x, window_hw).flatten(1, 2)
        if not self.shift:
            windows = self.attn(x, window_hw)
        elif traced:  # one graph for any number of windows
            mask = shift_mask(padded_hw, self.window, self.shift, self.shift_mask_value, x.device)
            windows = self.attn(x, window_hw, mask)
        else:
            windows = self.attn.attend_in_shifted_windows(x, padded_hw, self.shift_masks)
        x = window_reverse(windows, window_hw, padded_hw)
        if self.shift:
            x = torch.roll(x, (self.shift, self.shift), dims=(1, 2))
        return x[:, :height, :width]


class PatchMerging(nn.Module):
    """Half the resolution, twice the channels: 2 x 2 neighbours concatenated, linear, norm."""

    def __init__(self, dim: int):
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = _layer_norm(2 * dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2C)."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.norm(self.reduction(torch.cat(corners, dim=-1)))


class SwinV2Stage(nn.Module):
    """Blocks at one resolution, then patch merging unless it is the last stage."""

    def __init__(self, *, blocks: Sequence[SwinV2Block], downsample: PatchMerging | None, checkpointed: bool):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample
        self.checkpointed = checkpointed

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, H, W, C) -> the same shape after the blocks, and what the next stage starts from."""
        for block in self.blocks:
            if self.checkpointed and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x, self.downsample(x) if self.downsample else None


class SwinV2(ImageBackbone):
    """Swin Transformer V2 (arXiv:2111.09883) for detection.

    Args:
        embed_dim: channels of the first stage; each stage doubles them.
        depths, num_heads: of each stage.
        window_size: side of the attention window in tokens, in every stage.
        pretrained_window_sizes: per stage, the window of pre-training, which normalises the offsets of the position
            bias; 0 means the same as in use (for whole-map blocks: the map itself).
        global_blocks: per stage, indices of the blocks that attend over the whole map; negative entries mean none.
        mlp_ratio: hidden width of the MLP over its input width.
        drop_path_rate: stochastic depth of the last block; grows linearly from 0 at the first.
        out_features: among "p2" (stride 4) to "p5" (stride 32).
        activation_checkpointing: recompute blocks in the backward pass instead of storing their activations.
        shift_mask_value: what separates tokens of different regions in shifted windows. -inf separates them; the
            released code adds -100, which cosine logits (up to 100) can outweigh.

    Outputs: ``{name: (B, C * 2**i, ceil(H / stride), ceil(W / stride))}``; sizes are rounded up at stride 4 and then at
    each halving. Any H, W >= 1 works.
    """

    def __init__(
        self,
        *,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 18, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 16,
        pretrained_window_sizes: Sequence[int] = (0, 0, 0, 0),
        global_blocks: Sequence[Sequence[int]] = ((-1,), (-1,), (-1,), (-1,)),
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        out_features: Sequence[str] = ("p5",),
        activation_checkpointing: bool = False,
        shift_mask_value: float = float("-inf"),
    ):
        super().__init__()
        stages = len(depths)
        for name, values in (("heads", num_heads), ("windows", pretrained_window_sizes), ("blocks", global_blocks)):
            if len(values) != stages:
                raise ValueError(f"Swin V2: {stages} stages (depths {list(depths)}) but {name} for {len(values)}")
        channels, strides = ([first * 2**i for i in range(stages)] for first in (embed_dim, 4))
        self._set_outputs("Swin V2: out_features", out_features, channels, strides, letter="p")
        # The image is padded right and bottom with zeros to a multiple of 4.
        self.patch_embed = PatchEmbed(
            None, 4, embed_dim=embed_dim, norm_layer=_layer_norm, output_fmt="NHWC", dynamic_img_pad=True
        )
        rates = torch.linspace(0, drop_path_rate, sum(depths), device="cpu").tolist()
        self.layers = nn.ModuleList()
        for i, depth in enumerate(depths):
            dim, first = embed_dim * 2**i, sum(depths[:i])
            blocks = [
                SwinV2Block(
                    dim=dim,
                    num_heads=num_heads[i],
                    window=0 if j in global_blocks[i] else window_size,
                    pretrained_window=pretrained_window_sizes[i],
                    shift=window_size // 2 if j % 2 else 0,
                    mlp_ratio=mlp_ratio,
                    drop_path=rates[first + j],
                    shift_mask_value=shift_mask_value,
                )
                for j in range(depth)
            ]
            merge = PatchMerging(dim) if i + 1 < stages else None
            self.layers.append(SwinV2Stage(blocks=blocks, downsample=merge, checkpointed=activation_checkpointing))
        for name in self._out_features:
            self.add_module(self._norm_name(name), _layer_norm(self._out_feature_channels[name]))
        self._initialise()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W), normalised, of any size -> see the class."""
        x = self.patch_embed(images)
        outputs = {}
        for i, stage in enumerate(self.layers):
            here, x = stage(x)
            name = f"p{i + 2}"
            if name in self._out_features:
                norm = self.get_submodule(self._norm_name(name))
                outputs[name] = norm(here).permute(0, 3, 1, 2).contiguous()
        return outputs

    @staticmethod
    def _norm_name(feature: str) -> str:
        return f"norm{int(feature[1:]) - 2}"

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, SwinV2Block):
                # Every block starts as the identity (arXiv:2111.09883, section 3.2: residual post-normalisation).
                for norm in (module.norm1, module.norm2):
                    nn.init.zeros_(norm.weight)
                    nn.init.zeros_(norm.bias)


@BACKBONE_REGISTRY.register()
def build_swin_v2_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SwinV2:
    """``MODEL.BACKBONE.NAME`` "build_swin_v2_backbone"; sizes from ``MODEL.SWIN_V2``."""
    options = arguments(cfg.MODEL.SWIN_V2, DROP_PATH="drop_path_rate")
    options["shift_mask_value"] = -100.0 if options.pop("released_shift_mask") else float("-inf")
    return SwinV2(**options)
