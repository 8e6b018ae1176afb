"""Swin V2 as a detectron2 backbone, with whole-map attention where asked and maps of any size.

The parts of the windowed form are in timm, but not the function Plain-DETR's backbone computes; see
``swin_v2_attention`` for what is missing there. Parameter names are the field's, such as
``layers.0.blocks.0.attn.qkv.weight``, so Swin V2 files of any origin need a prefix changed at most.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from timm.layers import DropPath, Mlp
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from d2x.backbones.swin_v2_attention import CosineAttention, merge_windows, partition_windows, shift_mask

_EPSILON = 1e-6  # of every layer norm in here


class SwinV2Block(nn.Module):
    """``x + norm(attention(x))``, ``x + norm(mlp(x))`` on a map of any size.

    The map is padded right and bottom with zeros to whole windows. Padded tokens are not masked: they take part as
    keys and values, as in pre-training and in the released code.

    Args:
        window: side of the attention window in tokens; 0 attends over the whole map.
        shift: cyclic shift of the windows in tokens; 0 for none.
        shift_mask_value: see :func:`d2x.backbones.swin_v2_attention.shift_mask`.
    """

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
        self.norm1 = nn.LayerNorm(dim, eps=_EPSILON)
        self.attn = CosineAttention(dim=dim, num_heads=num_heads, window=window, pretrained_window=pretrained_window)
        self.drop_path = DropPath(drop_path)
        self.norm2 = nn.LayerNorm(dim, eps=_EPSILON)
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
        traced = torch.jit.is_tracing() or torch.compiler.is_compiling()
        if right or bottom or traced:
            x = F.pad(x, (0, 0, 0, right, 0, bottom))
        padded_hw, window_hw = (x.shape[1], x.shape[2]), (self.window, self.window)
        if not self.shift:
            windows = self.attn(partition_windows(x, self.window), window_hw)
        else:
            x = partition_windows(torch.roll(x, (-self.shift, -self.shift), dims=(1, 2)), self.window)
            if traced:  # one graph for any number of windows
                mask = shift_mask(padded_hw, self.window, self.shift, self.shift_mask_value, x.device)
                windows = self.attn(x, window_hw, mask)
            else:
                windows = self.attn.attend_in_shifted_windows(x, padded_hw, self.shift_masks)
        x = merge_windows(windows, self.window, padded_hw)
        if self.shift:
            x = torch.roll(x, (self.shift, self.shift), dims=(1, 2))
        return x[:, :height, :width]


class PatchMerging(nn.Module):
    """Half the resolution, twice the channels: 2 x 2 neighbours concatenated, linear, norm."""

    def __init__(self, dim: int):
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(2 * dim, eps=_EPSILON)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2C)."""
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        corners = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.norm(self.reduction(torch.cat(corners, dim=-1)))


class PatchEmbed(nn.Module):
    """Pixels to tokens of 4 x 4; the image is padded right and bottom with zeros to a multiple of 4."""

    def __init__(self, dim: int, patch_size: int = 4):
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(3, dim, patch_size, patch_size)
        self.norm = nn.LayerNorm(dim, eps=_EPSILON)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, ceil(H / 4), ceil(W / 4), C)."""
        height, width = images.shape[-2:]
        images = F.pad(images, (0, -width % self.patch_size, 0, -height % self.patch_size))
        return self.norm(self.proj(images).permute(0, 2, 3, 1))


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


class SwinV2(Backbone):
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

    @configurable
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
        unknown = set(out_features) - {f"p{i + 2}" for i in range(stages)}
        if unknown or not out_features:
            raise ValueError(f"Swin V2: out_features {list(out_features)} must be among p2 to p{stages + 1}")
        self.patch_embed = PatchEmbed(embed_dim)
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
        self._out_features = [f"p{i + 2}" for i in range(stages) if f"p{i + 2}" in out_features]
        self._out_feature_strides = {f"p{i + 2}": 2 ** (i + 2) for i in range(stages)}
        self._out_feature_channels = {f"p{i + 2}": embed_dim * 2**i for i in range(stages)}
        for name in self._out_features:
            channels = self._out_feature_channels[name]
            self.add_module(self._norm_name(name), nn.LayerNorm(channels, eps=_EPSILON))
        self._initialise()

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec | None = None) -> dict:
        node = cfg.MODEL.SWIN_V2
        return {
            "embed_dim": node.EMBED_DIM,
            "depths": node.DEPTHS,
            "num_heads": node.NUM_HEADS,
            "window_size": node.WINDOW_SIZE,
            "pretrained_window_sizes": node.PRETRAINED_WINDOW_SIZES,
            "global_blocks": node.GLOBAL_BLOCKS,
            "drop_path_rate": node.DROP_PATH,
            "out_features": node.OUT_FEATURES,
            "activation_checkpointing": node.ACTIVATION_CHECKPOINTING,
            "shift_mask_value": -100.0 if node.RELEASED_SHIFT_MASK else float("-inf"),
        }

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
    return SwinV2(cfg, input_shape)
