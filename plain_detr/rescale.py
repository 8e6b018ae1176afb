"""From the backbone's map to the decoder's: 2x2 convolutions from stride to stride, and the projection of channels."""

import torch
from timm.layers.norm import LayerNorm2d
from torch import Tensor, nn


class Rescale(nn.Sequential):
    """Layers in turn, which give ``out_channels``."""

    out_channels: int


def rescale(channels: int, stride: int, target: int, *, halve: bool = False) -> Rescale:
    """Convolutions from ``stride`` to ``target``, LayerNorm over the channels and GELU between two of them.

    Args:
        channels: of the input map.
        stride, target: input pixels per cell before and after; they differ by a power of two.
        halve: each doubling of the resolution halves the channels (the backbone's output), else they stay (levels
            for proposals).

    Returns:
        The layers, none when the strides are equal.

    Raises:
        ValueError: the strides do not differ by a power of two, or the channels cannot be halved.
    """
    ratio = max(stride, target) // min(stride, target)
    if max(stride, target) % min(stride, target) or ratio & (ratio - 1):
        raise ValueError(f"cannot rescale from stride {stride} to {target}: not a power of two apart")
    layers: list[nn.Module] = []
    for _ in range(ratio.bit_length() - 1):
        if layers:
            layers += [LayerNorm2d(channels, eps=1e-5), nn.GELU()]
        if target < stride:
            if halve and channels % 2:
                raise ValueError(f"cannot halve {channels} channels while up-sampling from stride {stride} to {target}")
            out_channels = channels // 2 if halve else channels
            layers.append(nn.ConvTranspose2d(channels, out_channels, kernel_size=2, stride=2))
            channels = out_channels
        else:
            layers.append(nn.Conv2d(channels, channels, kernel_size=2, stride=2))
    stack = Rescale(*layers)
    stack.out_channels = channels
    return stack


class InputProjection(nn.Module):
    """1x1 convolution to the width of the decoder, and GroupNorm over 32 groups."""

    def __init__(self, in_channels: int, hidden_dim: int):
        super().__init__()
        if hidden_dim % 32:
            raise ValueError(f"MODEL.PLAIN_DETR.HIDDEN_DIM must be a multiple of 32, got {hidden_dim}")
        self.conv = nn.Conv2d(in_channels, hidden_dim, kernel_size=1)
        self.norm = nn.GroupNorm(32, hidden_dim)
        nn.init.xavier_uniform_(self.conv.weight)
        if self.conv.bias is not None:
            nn.init.zeros_(self.conv.bias)

    def forward(self, features: Tensor) -> Tensor:
        # The function, not the module: that one refuses a single cell at one channel a group, whose norm is its bias.
        norm = self.norm
        return torch.group_norm(self.conv(features), norm.num_groups, norm.weight, norm.bias, norm.eps)
