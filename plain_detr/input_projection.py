"""From the backbone's channels to the decoder's."""

import torch
from torch import Tensor, nn


class InputProjection(nn.Module):
    """1x1 convolution to the width of the decoder, and GroupNorm over 32 groups."""

    def __init__(self, in_channels: int, hidden_dim: int):
        super().__init__()
        if hidden_dim % 32:
            raise ValueError(f"MODEL.PLAIN_DETR.HIDDEN_DIM must be a multiple of 32, got {hidden_dim}")
        self.conv = nn.Conv2d(in_channels, hidden_dim, kernel_size=1)
        self.norm = nn.GroupNorm(32, hidden_dim)
        nn.init.xavier_uniform_(self.conv.weight)
        nn.init.zeros_(self.conv.bias)

    def forward(self, features: Tensor) -> Tensor:
        # The function, not the module: that one refuses a single cell at one channel a group, whose norm is its bias.
        norm = self.norm
        return torch.group_norm(self.conv(features), norm.num_groups, norm.weight, norm.bias, norm.eps)
