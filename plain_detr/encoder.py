"""Optional transformer encoder between backbone and decoder.

The plain form (every token sees every token) is what DINOv3's released detector puts on its frozen backbone; the
windowed form, 12 layers of width 256, is what the paper's largest models use.
"""

from timm.models.swin_transformer_v2 import window_partition, window_reverse
from torch import Tensor, nn
from torch.nn import functional as F

from plain_detr.decoder_layer import FeedForward, SelfAttention


class EncoderLayer(nn.Module):
    """Self-attention and feed-forward, with a norm before or after each.

    Args:
        window: side in cells of the windows attention is limited to; 0 is the whole map.
        shift: cells by which the windows are moved up and left.
    """

    def __init__(
        self,
        *,
        hidden_dim: int,
        num_heads: int,
        feedforward_dim: int,
        dropout: float = 0.0,
        norm_first: bool = False,
        window: int = 0,
        shift: int = 0,
    ):
        super().__init__()
        self.norm_first, self.window, self.shift = norm_first, window, shift
        self.self_attention = SelfAttention(hidden_dim=hidden_dim, num_heads=num_heads, dropout=dropout)
        self.self_attention_norm = nn.LayerNorm(hidden_dim)
        self.feedforward = FeedForward(hidden_dim=hidden_dim, feedforward_dim=feedforward_dim, dropout=dropout)
        self.feedforward_norm = nn.LayerNorm(hidden_dim)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.self_attention.out_proj, self.feedforward.linear1, self.feedforward.linear2):
            nn.init.xavier_uniform_(linear.weight)

    def forward(self, x: Tensor, position: Tensor, padding: Tensor) -> Tensor:
        """(N, Hf, Wf, C) -> the same; ``position`` likewise, ``padding`` (N, Hf, Wf) bool."""
        if self.norm_first:
            x = x + self.dropout(self._attend(self.self_attention_norm(x), position, padding))
            return x + self.dropout(self.feedforward(self.feedforward_norm(x)))
        x = self.self_attention_norm(x + self.dropout(self._attend(x, position, padding)))
        return self.feedforward_norm(x + self.dropout(self.feedforward(x)))

    def _attend(self, x: Tensor, position: Tensor, padding: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        if not self.window:
            flat = self.self_attention(x.flatten(1, 2), position.flatten(1, 2), padding=padding.flatten(1))
            return flat.unflatten(1, (height, width))
        # Moved windows see padding on all four sides rather than wrapping around.
        top = self.shift
        bottom, right = -(top + height) % self.window, -(top + width) % self.window
        border = (top, right, top, bottom)
        outside = F.pad(padding, border, value=True)
        side = (self.window, self.window)
        tokens = (window_partition(F.pad(part, (0, 0, *border)), side) for part in (x, position.to(x.dtype)))
        x, position = (part.flatten(1, 2) for part in tokens)
        outside = window_partition(outside[..., None], side).flatten(1)
        outside = outside & ~outside.all(-1, keepdim=True)  # a window of padding alone attends to itself
        attended = self.self_attention(x, position, padding=outside)
        attended = window_reverse(attended, side, (top + height + bottom, top + width + right))
        return attended[:, top : top + height, top : top + width]


class Encoder(nn.Module):
    """A stack of ``EncoderLayer``; every second layer's windows are moved by half their side."""

    def __init__(self, *, num_layers: int, window: int = 0, norm_first: bool = False, **layer):
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(window=window, shift=window // 2 if index % 2 else 0, norm_first=norm_first, **layer)
            for index in range(num_layers)
        )

    def forward(self, x: Tensor, position: Tensor, padding: Tensor) -> Tensor:
        """Encode a map.

        Args:
            x: (N, C, Hf, Wf).
            position: (N, Hf, Wf, C).
            padding: (N, Hf, Wf) bool, True where there is no image.

        Returns:
            (N, C, Hf, Wf).
        """
        x = x.permute(0, 2, 3, 1)
        for layer in self.layers:
            x = layer(x, position, padding)
        return x.permute(0, 3, 1, 2)
