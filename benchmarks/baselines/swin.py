"""Swin V2 stages in which nothing is kept from one forward pass to the next, and every logit is in memory."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from d2x.backbones.swin_v2 import SwinV2Block, SwinV2Stage
from d2x.backbones.swin_v2_attention import CosineAttention, log_spaced_offsets, offset_index

EPSILON = 5e-5  # added to the norms of queries and keys
HIGHEST_SCALE = 100.0


class PlainStage(nn.Module):
    """``SwinV2Stage`` on the same parameters: one mask a pass, one bias network run a block, eager attention.

    Args:
        stage: ours.
    """

    def __init__(self, stage: SwinV2Stage):
        super().__init__()
        self.stage = stage

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """As ``SwinV2Stage.forward``."""
        shifted = [block for block in self.stage.blocks if block.window and block.shift]
        mask = plain_shift_mask(x, shifted[0]) if shifted else None
        for block in self.stage.blocks:
            if self.stage.checkpointed and self.training:
                x = checkpoint(plain_block, block, x, mask, use_reentrant=False)
            else:
                x = plain_block(block, x, mask)
        return x, self.stage.downsample(x) if self.stage.downsample else None


def plain_block(block: SwinV2Block, x: Tensor, mask: Tensor | None) -> Tensor:
    """(B, H, W, C) -> (B, H, W, C); ``mask`` of the shifted windows of this size."""
    attended = windowed(block, x, mask) if block.window else over_map(block.attn, x)
    x = x + block.drop_path(block.norm1(attended))
    return x + block.drop_path(block.norm2(block.mlp(x)))


def over_map(attention: CosineAttention, x: Tensor) -> Tensor:
    """Attention over all tokens of (B, H, W, C)."""
    return plain_attention(attention, x.flatten(1, 2), (x.shape[1], x.shape[2]), None).view(x.shape)


def windowed(block: SwinV2Block, x: Tensor, mask: Tensor | None) -> Tensor:
    """Attention inside windows of the padded, shifted map."""
    height, width = x.shape[1:3]
    side, shift = block.window, block.shift
    x = F.pad(x, (0, 0, 0, -width % side, 0, -height % side))
    if shift:
        x = torch.roll(x, (-shift, -shift), (1, 2))
    batch, rows, columns, dim = x.shape
    windows = x.view(batch, rows // side, side, columns // side, side, dim).transpose(2, 3).reshape(-1, side**2, dim)
    windows = plain_attention(block.attn, windows, (side, side), mask if shift else None)
    x = windows.view(batch, rows // side, columns // side, side, side, dim).transpose(2, 3).reshape(x.shape)
    if shift:
        x = torch.roll(x, (shift, shift), (1, 2))
    return x[:, :height, :width]


def plain_attention(attention: CosineAttention, x: Tensor, hw: tuple[int, int], mask: Tensor | None) -> Tensor:
    """(N, T, C) -> (N, T, C); ``mask`` (S, T, T) belongs to window n % S."""
    count, tokens, dim = x.shape
    heads = attention.num_heads
    bias = torch.cat([attention.q_bias, torch.zeros_like(attention.q_bias), attention.v_bias])
    qkv = F.linear(x, attention.qkv.weight, bias).reshape(count, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
    query, key, value = qkv.unbind(0)
    query = query / (query.norm(dim=-1, keepdim=True) + EPSILON)
    key = key / (key.norm(dim=-1, keepdim=True) + EPSILON)
    logits = query @ key.transpose(-2, -1) * attention.logit_scale.exp().clamp(max=HIGHEST_SCALE)
    logits = logits + plain_position_bias(attention, hw)
    if mask is not None:
        logits = logits.view(count // len(mask), len(mask), heads, tokens, tokens) + mask[:, None]
        logits = logits.view(count, heads, tokens, tokens)
    mixed = logits.softmax(-1) @ value
    return attention.proj(mixed.transpose(1, 2).reshape(count, tokens, dim))


def plain_position_bias(attention: CosineAttention, hw: tuple[int, int]) -> Tensor:
    """(A, T, T): the network on every offset, looked up for every pair, then the sigmoid of each."""
    table = log_spaced_offsets(hw, attention.pretrained_window).to(attention.logit_scale)
    index = offset_index(hw).to(table.device)
    return 16 * torch.sigmoid(attention.cpb_mlp(table).flatten(0, 1)[index].permute(2, 0, 1))


def plain_shift_mask(x: Tensor, block: SwinV2Block) -> Tensor:
    """(S, T, T) for a map (B, H, W, C): nine regions are painted, and compared within each window."""
    side, shift = block.window, block.shift
    height, width = (-(-size // side) * side for size in x.shape[1:3])
    painted = torch.zeros(height, width, device=x.device)
    bands = (slice(0, -side), slice(-side, -shift), slice(-shift, None))
    for number, (rows, columns) in enumerate((r, c) for r in bands for c in bands):
        painted[rows, columns] = number
    windows = painted.view(height // side, side, width // side, side).transpose(1, 2).reshape(-1, side * side)
    differs = windows[:, :, None] != windows[:, None]
    return torch.zeros(differs.shape, device=x.device).masked_fill(differs, block.shift_mask_value)
