"""Cosine attention of Swin V2 with a continuous position bias, inside windows or over the whole map.

Swin Transformer V2 (arXiv:2111.09883), eq. 2 to 4. timm has the windowed form; what it lacks, and plain detectors need,
is attention over the whole map with the same bias network (a bias table made for the map at hand), offsets normalised
by the window of pre-training when that differs from the window in use, and maps of any size: timm fixes the window to
the map when the map is smaller, shifts before it pads, and masks accordingly, which gives other numbers.

Shapes: B maps of H x W tokens with C channels, S windows a map, T = window * window tokens a window, A heads.
"""

import math

import torch
import torch.nn.functional as F
from timm.models.swin_transformer_v2 import window_partition
from torch import Tensor, nn

from d2x.backbones.shared_bias_attention import shared_bias_attention
from d2x.backbones.tracing import recording

# Norm of a query or key below this is not blown up to one (the released code adds it; it is no lower bound).
_NORM_EPSILON = 5e-5
_HIGHEST_SCALE = math.log(100.0)
# A position bias of more numbers than this, of a large map, is made anew at every call.
_LARGEST_KEPT_BIAS = 1 << 24


def log_spaced_offsets(grid_hw: tuple[int, int], pretrained_window: int) -> Tensor:
    """Every relative offset inside a grid, log-spaced (eq. 4 of the paper, scaled so that 8 maps to about 1).

    Args:
        grid_hw: (height, width) of the window or the map, in tokens.
        pretrained_window: side of the window of pre-training, whose largest offset becomes 8; 0 takes the grid's own.

    Returns:
        (2 * height - 1, 2 * width - 1, 2) as (dy, dx): ``sign(c) * log2(|c| + 1) / log2(8)``. A grid one token high or
        wide has the single offset 0 along that axis, whatever the normaliser (the released code divides 0 by 0).
    """
    along = []
    for size in grid_hw:
        largest = max((pretrained_window or size) - 1, 1)
        scaled = torch.arange(1 - size, size, dtype=torch.float32) * (8.0 / largest)
        along.append(scaled.sign() * (scaled.abs() + 1).log2() / 3.0)
    return torch.stack(torch.meshgrid(*along, indexing="ij"), dim=-1)


def offset_index(grid_hw: tuple[int, int]) -> Tensor:
    """Row-major index into the flattened offset table for every pair of tokens of a grid.

    Returns:
        (T, T) int64 with T = height * width; entry (i, j) points at the offset from token j to token i.
    """
    height, width = grid_hw
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    y, x = y.flatten(), x.flatten()
    dy = y[:, None] - y[None, :] + height - 1
    dx = x[:, None] - x[None, :] + width - 1
    return dy * (2 * width - 1) + dx


class CosineAttention(nn.Module):
    """Multi-head cosine attention over the tokens of one grid (a window, or a whole map).

    Args:
        dim: channels; a multiple of ``num_heads``.
        num_heads: heads.
        window: side of the window in tokens; 0 for a grid of any size, whose table is made at every call.
        pretrained_window: see :func:`log_spaced_offsets`.
        bias_hidden_dim: hidden width of the network that turns offsets into biases.
    """

    relative_coords_table: Tensor
    relative_position_index: Tensor

    def __init__(
        self, *, dim: int, num_heads: int, window: int = 0, pretrained_window: int = 0, bias_hidden_dim: int = 512
    ):
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"Swin V2: {dim} channels cannot be split over {num_heads} heads")
        self.num_heads, self.window, self.pretrained_window = num_heads, window, pretrained_window
        self.logit_scale = nn.Parameter(torch.full((num_heads, 1, 1), math.log(10.0)))
        self.cpb_mlp = nn.Sequential(
            nn.Linear(2, bias_hidden_dim), nn.ReLU(inplace=True), nn.Linear(bias_hidden_dim, num_heads, bias=False)
        )
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.proj = nn.Linear(dim, dim)
        if window:
            # Follow from the arguments, so they stay out of our checkpoints; released ones hold them under these names.
            table = log_spaced_offsets((window, window), pretrained_window)
            self.register_buffer("relative_coords_table", table[None], persistent=False)
            self.register_buffer("relative_position_index", offset_index((window, window)), persistent=False)

        self._kept: tuple[tuple, list[nn.Parameter], Tensor] | None = None

    def train(self, mode: bool = True) -> "CosineAttention":
        self._kept = None
        return super().train(mode)

    def position_bias(self, grid_hw: tuple[int, int]) -> Tensor:
        """(A, T, T) added to the logits: ``16 * sigmoid(network(offset))``.

        Without gradients the last one is kept for as long as the network's weights are the same.
        """
        weights = list(self.cpb_mlp.parameters())
        if torch.is_grad_enabled() or recording() or any(weight.is_inference() for weight in weights):
            return self._position_bias(grid_hw)
        state = (tuple(grid_hw), *((w.data_ptr(), w._version, w.dtype, w.device) for w in weights))
        if self._kept is not None:
            kept_state, kept_weights, bias = self._kept
            if kept_state == state and all(weight is kept for weight, kept in zip(weights, kept_weights)):
                return bias
        bias = self._position_bias(grid_hw)
        self._kept = (state, weights, bias) if bias.numel() <= _LARGEST_KEPT_BIAS else None
        return bias

    def _position_bias(self, grid_hw: tuple[int, int]) -> Tensor:
        if self.window:
            table, index = self.relative_coords_table[0], self.relative_position_index
        else:
            table = log_spaced_offsets(grid_hw, self.pretrained_window).to(self.logit_scale)
            index = offset_index(grid_hw).to(self.logit_scale.device)
        # The sigmoid of every offset, then the look-up for every pair: pairs are many more.
        bias = 16 * torch.sigmoid(self.cpb_mlp(table).flatten(0, 1))  # (offsets, A)
        return bias.t().contiguous().index_select(1, index.flatten()).unflatten(1, index.shape)

    def forward(self, x: Tensor, grid_hw: tuple[int, int], mask: Tensor | None = None) -> Tensor:
        """Attend within each of N grids.

        Args:
            x: (N, T, C) with T = height * width of ``grid_hw``.
            mask: (S, T, T) added to the logits of grid n at index ``n % S``; N is a multiple of S.

        Returns:
            (N, T, C).
        """
        count, tokens, dim = x.shape
        query, key, value = self._project(x)
        bias = self.position_bias(grid_hw)
        if mask is not None:
            # One bias of every window serves every map of the batch: windows become heads of the map, which the fused
            # operator takes. An export keeps them apart: OpenVINO fails to simplify a graph that folds them.
            bias = bias + mask[:, None]
            fold = (count // len(mask), *bias.shape[:2], tokens, -1)
            if not torch.compiler.is_exporting():
                bias, fold = bias.flatten(0, 1), (fold[0], -1, tokens, dim // self.num_heads)
            query, key, value = query.reshape(fold), key.reshape(fold), value.reshape(fold)
        mixed = shared_bias_attention(query, key, value, bias)
        mixed = mixed.reshape(count, self.num_heads, tokens, -1).transpose(1, 2).reshape(count, tokens, dim)
        return self.proj(mixed)

    def attend_in_shifted_windows(self, x: Tensor, map_hw: tuple[int, int], masks: Tensor) -> Tensor:
        """Attend within the shifted windows of B maps; the same as ``forward`` with a mask for every window.

        Only the last row and column of windows hold tokens that the shift brought together, so there are four kinds
        of windows, and all of one kind share their bias.

        Args:
            x: (B * S, T, C), the windows row by row.
            map_hw: (height, width) of the padded map.
            masks: (4, T, T) added to the logits of: other windows, those of the last column, of the last row, and
                the one in the corner.

        Returns:
            (B * S, T, C).
        """
        count, tokens, dim = x.shape
        rows, columns = (size // self.window for size in map_hw)
        parts = [part.unflatten(0, (-1, rows, columns)) for part in self._project(x)]
        bias = self.position_bias((self.window, self.window))
        lines = []
        for last_row in ([False] if rows > 1 else []) + [True]:
            line = []
            for last_column in ([False] if columns > 1 else []) + [True]:
                place = tuple(slice(-1, None) if last else slice(None, -1) for last in (last_row, last_column))
                mine = [part[(slice(None), *place)] for part in parts]
                mask = masks[2 * last_row + last_column]
                kind = bias + mask if last_row or last_column else bias
                mixed = shared_bias_attention(*(part.flatten(0, 2) for part in mine), kind)
                line.append(mixed.unflatten(0, mine[0].shape[:3]))
            lines.append(torch.cat(line, dim=2) if len(line) > 1 else line[0])
        mixed = torch.cat(lines, dim=1) if len(lines) > 1 else lines[0]  # (B, rows, columns, A, T, C / A)
        return self.proj(mixed.transpose(3, 4).reshape(count, tokens, dim))

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, T, C) -> query, key, value (N, A, T, C / A), the first two of length one, the query scaled."""
        qkv_bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.qkv.weight, qkv_bias).unflatten(-1, (3, self.num_heads, -1))
        pair, value = qkv[:, :, :2], qkv[:, :, 2]
        scale = self.logit_scale.clamp(max=_HIGHEST_SCALE).exp().view(-1, 1)
        factors = torch.stack([scale, torch.ones_like(scale)])  # (2, A, 1)
        pair = (pair * (factors / (pair.norm(dim=-1, keepdim=True) + _NORM_EPSILON))).to(qkv.dtype)
        query, key = pair.unbind(2)
        return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)


def shift_mask(map_hw: tuple[int, int], window: int, shift: int, value: float, device: torch.device) -> Tensor:
    """Keep tokens that only the cyclic shift brought together from attending to each other.

    Args:
        map_hw: (height, width) of the padded map, multiples of the window.
        value: added to the logits of such pairs, -inf or a large negative number.

    Returns:
        (S, T, T): 0 or ``value``. Every token may see itself, so no row is all ``value``.
    """
    regions = []
    for size in map_hw:
        position = torch.arange(size, device=device)
        regions.append((position >= size - window).long() + (position >= size - shift).long())
    region = regions[0][:, None] * 3 + regions[1][None, :]
    region = window_partition(region[None, :, :, None], (window, window)).flatten(1)  # (S, T)
    apart = region[:, :, None] != region[:, None, :]
    return torch.zeros(apart.shape, device=device).masked_fill_(apart, value)
