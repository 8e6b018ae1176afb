"""One layer of the decoder: self-attention, global cross-attention, feed-forward."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plain_detr.attention.biased import attention_weights, biased_attention, check_implementation
from plain_detr.modulation.base import AttentionBias, Modulation

RELEASED_INIT_STD = 0.02  # of linear weights, whatever the width


class SelfAttention(nn.MultiheadAttention):
    """Multi-head self-attention inside each group of queries; groups do not see each other.

    Running the groups one by one equals a mask between them, at the cost of the squares of their sizes.
    """

    def __init__(self, *, hidden_dim: int, num_heads: int, dropout: float = 0.0):
        super().__init__(hidden_dim, num_heads, dropout=dropout, batch_first=True)

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, x: Tensor, position: Tensor, groups: Sequence[int] | None = None, padding: Tensor | None = None
    ) -> Tensor:
        """Attend within groups.

        Args:
            x: (N, Q, C), the values; queries and keys are ``x + position``.
            position: (N, Q, C).
            groups: sizes that sum to Q; None is one group of all.
            padding: (N, Q) bool, True for tokens nobody may attend to, with one group.
        """
        attended = []
        for values, pairs in zip(*(part.split(groups or x.shape[1], dim=1) for part in (x, x + position))):
            mixed, _ = super().forward(pairs, pairs, values, key_padding_mask=padding, need_weights=False)
            attended.append(mixed)
        return torch.cat(attended, dim=1)


class CrossAttention(nn.Module):
    """Global attention from queries to every cell of one feature map, with an optional bias by box.

    Args:
        hidden_dim, num_heads: C and h.
        box_rpb: the bias by box (checkpoints have it under this name), or None for position by content only.
        padding_value: added to logits of padded cells; -inf, or -100 as the released code.
        implementation: see ``biased_attention``.
    """

    def __init__(
        self,
        *,
        hidden_dim: int,
        num_heads: int,
        box_rpb: Modulation | None = None,
        padding_value: float = -math.inf,
        implementation: str = "auto",
    ):
        super().__init__()
        if hidden_dim % num_heads:
            raise ValueError(f"HIDDEN_DIM {hidden_dim} is not a multiple of NUM_HEADS {num_heads}")
        check_implementation(implementation)
        self.num_heads, self.padding_value, self.implementation = num_heads, padding_value, implementation
        self.query = nn.Linear(hidden_dim, hidden_dim)
        self.key = nn.Linear(hidden_dim, hidden_dim)
        self.value = nn.Linear(hidden_dim, hidden_dim)
        self.output = nn.Linear(hidden_dim, hidden_dim)
        self.box_rpb = box_rpb

    def forward(
        self,
        queries: Tensor,
        keys: Tensor,
        values: Tensor,
        boxes_cxcywh: Tensor,
        hw: tuple[int, int],
        stride: int,
        padding: Tensor | None = None,
    ) -> Tensor:
        """Attend.

        Args:
            queries: (N, Q, C), position included.
            keys: (N, L, C), position included.
            values: (N, L, C).
            boxes_cxcywh: (N, Q, 4), pixels; read only by the bias.
            hw: (Hf, Wf), Hf * Wf = L.
            stride: input pixels per cell.
            padding: (N, L) bool or None.

        Returns:
            (N, Q, C).
        """
        q, k, v = self._project(queries, keys, values)
        bias = self._bias(boxes_cxcywh, hw, stride, queries)
        attended = biased_attention(
            q, k, v, bias.x, bias.y, padding,
            padding_value=self.padding_value, bias=bias.full, implementation=self.implementation,
        )  # fmt: skip
        return self.output(attended.transpose(1, 2).flatten(2))

    @torch.no_grad()
    def weights(
        self,
        queries: Tensor,
        keys: Tensor,
        boxes_cxcywh: Tensor,
        hw: tuple[int, int],
        stride: int,
        padding: Tensor | None = None,
        *,
        with_bias: bool = True,
    ) -> Tensor:
        """(N, h, Q, Hf, Wf) attention probabilities, for pictures; arguments as in ``forward``."""
        q, k, _ = self._project(queries, keys, keys)
        bias = self._bias(boxes_cxcywh, hw, stride, queries) if with_bias else AttentionBias()
        weights = attention_weights(
            q, k, bias.x, bias.y, padding, padding_value=self.padding_value, bias=bias.full
        )  # fmt: skip
        return weights.unflatten(-1, tuple(hw))

    def _project(self, queries: Tensor, keys: Tensor, values: Tensor) -> list[Tensor]:
        projected = self.query(queries), self.key(keys), self.value(values)
        return [_heads(part, self.num_heads) for part in projected]

    def _bias(self, boxes_cxcywh: Tensor, hw: tuple[int, int], stride: int, queries: Tensor) -> AttentionBias:
        return AttentionBias() if self.box_rpb is None else self.box_rpb(boxes_cxcywh, hw, stride, queries)


class FeedForward(nn.Module):
    """Linear, ReLU, linear."""

    def __init__(self, *, hidden_dim: int, feedforward_dim: int, dropout: float = 0.0):
        super().__init__()
        self.linear1 = nn.Linear(hidden_dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, hidden_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear2(self.dropout(F.relu(self.linear1(x))))


class LayerInputs(NamedTuple):
    """What a decoder layer works on.

    Attributes:
        x: (N, Q, C), the queries.
        position: (N, Q, C), their position codes.
        groups: sizes of the query groups; they sum to Q.
        keys, values, boxes_cxcywh, hw, stride, padding: see ``CrossAttention``.
    """

    x: Tensor
    position: Tensor
    groups: Sequence[int]
    keys: Tensor
    values: Tensor
    boxes_cxcywh: Tensor
    hw: tuple[int, int]
    stride: int
    padding: Tensor | None


class DecoderLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward, each with a residual and a norm before or after it.

    Args:
        cross_attention: the finished module; it carries what differs between variants.
        norm_first: norm before each part ("pre-norm") or after each sum ("post-norm").
    """

    def __init__(
        self,
        *,
        hidden_dim: int,
        num_heads: int,
        feedforward_dim: int,
        cross_attention: CrossAttention,
        dropout: float = 0.0,
        norm_first: bool = True,
    ):
        super().__init__()
        self.norm_first = norm_first
        self.self_attention = SelfAttention(hidden_dim=hidden_dim, num_heads=num_heads, dropout=dropout)
        self.self_attention_norm = nn.LayerNorm(hidden_dim)
        self.cross_attention = cross_attention
        self.cross_attention_norm = nn.LayerNorm(hidden_dim)
        self.feedforward = FeedForward(hidden_dim=hidden_dim, feedforward_dim=feedforward_dim, dropout=dropout)
        self.feedforward_norm = nn.LayerNorm(hidden_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, inputs: LayerInputs) -> Tensor:
        """(N, Q, C), the queries after this layer."""
        x = self._within_groups(inputs)
        x = self._part(
            x,
            self.cross_attention_norm,
            lambda y: self.cross_attention(
                y + inputs.position,
                inputs.keys,
                inputs.values,
                inputs.boxes_cxcywh,
                inputs.hw,
                inputs.stride,
                inputs.padding,
            ),
        )
        return self._part(x, self.feedforward_norm, self.feedforward)

    @torch.no_grad()
    def cross_attention_weights(self, inputs: LayerInputs, *, with_bias: bool = True) -> Tensor:
        """(N, h, Q, Hf, Wf): what this layer's cross-attention looks at."""
        x = self._within_groups(inputs)
        x = self.cross_attention_norm(x) if self.norm_first else x
        queries = x + inputs.position
        return self.cross_attention.weights(
            queries, inputs.keys, inputs.boxes_cxcywh, inputs.hw, inputs.stride, inputs.padding, with_bias=with_bias
        )

    def _within_groups(self, inputs: LayerInputs) -> Tensor:
        return self._part(
            inputs.x, self.self_attention_norm, lambda y: self.self_attention(y, inputs.position, inputs.groups)
        )

    def _part(self, x: Tensor, norm: nn.LayerNorm, part) -> Tensor:
        if self.norm_first:
            return x + self.dropout(part(norm(x)))
        return norm(x + self.dropout(part(x)))


def _heads(x: Tensor, num_heads: int) -> Tensor:
    """(N, L, C) -> (N, h, L, C / h)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def init_transformer_linears(layer: DecoderLayer, std: float = RELEASED_INIT_STD) -> None:
    """Weights of every linear layer of a decoder layer at random, zero biases; then its modulation's own start.

    Args:
        std: of a truncated normal; 0 is Xavier's uniform, which keeps the scale of what passes through whatever the
            width. The layers of a modulation, which take pixels, are normal either way.
    """
    modulation = layer.cross_attention.box_rpb
    of_modulation = set() if modulation is None else set(modulation.modules())
    for module in layer.modules():
        if isinstance(module, nn.Linear):
            if std or module in of_modulation:
                nn.init.trunc_normal_(module.weight, std=std or RELEASED_INIT_STD)
            else:
                nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    if modulation is not None:
        modulation.reset_parameters()
