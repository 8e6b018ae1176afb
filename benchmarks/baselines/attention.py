"""Decoder attention with everything held in memory: the bias of every pair, every logit, the mask between groups."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plain_detr.decoder_layer import CrossAttention, SelfAttention
from plain_detr.modulation.box_rpb import BoxRPB


class MaterialisedCrossAttention(nn.Module):
    """``CrossAttention`` on the same parameters, one eager operation after another.

    Args:
        attention: ours, with an axial bias on both corners.
    """

    def __init__(self, attention: CrossAttention):
        super().__init__()
        if attention.box_rpb is None or not (attention.box_rpb.axial and attention.box_rpb.corners):
            raise ValueError("the baseline knows the axial bias on both corners only")
        self.attention = attention

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
        """As ``CrossAttention.forward``."""
        ours = self.attention
        q, k, v = (
            layer(x).unflatten(-1, (ours.num_heads, -1)).transpose(1, 2)
            for layer, x in ((ours.query, queries), (ours.key, keys), (ours.value, values))
        )
        bias = materialised_bias(ours.box_rpb, boxes_cxcywh, hw, stride)
        attended = materialised_attention(q, k, v, bias, padding, padding_value=ours.padding_value)
        return ours.output(attended.transpose(1, 2).flatten(2))


def materialised_bias(box_rpb: BoxRPB, boxes_cxcywh: Tensor, hw: tuple[int, int], stride: int) -> Tensor:
    """(N, Q, 4) boxes in pixels -> (N, heads, Q, L): the MLPs on every offset at once, their sum for every pair."""
    centre, half = boxes_cxcywh[..., :2], boxes_cxcywh[..., 2:] / 2
    corners = torch.stack([centre - half, centre + half], dim=-1)  # (N, Q, 2 axes, 2 corners)
    along = []
    for axis, (size, mlp) in enumerate(((hw[1], box_rpb.mlp_x), (hw[0], box_rpb.mlp_y))):
        cells = (torch.arange(size, dtype=torch.float32, device=corners.device) + 0.5) * stride
        offsets = corners[:, :, axis, None] - cells[:, None]  # (N, Q, cells, 2)
        along.append(mlp(box_rpb.scale(offsets)))  # (N, Q, cells, heads)
    x, y = along
    return (x[:, :, None] + y[:, :, :, None]).flatten(2, 3).permute(0, 3, 1, 2)


def materialised_attention(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor, padding: Tensor | None, *, padding_value: float
) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v; shapes as in ``plain_detr.attention.biased``, ``bias`` (N, h, Q, L)."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    logits = logits + bias
    if padding is not None:
        mask = torch.zeros(padding.shape, dtype=logits.dtype, device=logits.device)
        logits = logits + mask.masked_fill(padding, padding_value)[:, None, None]
    limits = torch.finfo(logits.dtype)
    return logits.clip(limits.min, limits.max).softmax(-1) @ v


class MaskedSelfAttention(nn.Module):
    """``SelfAttention`` on the same parameters: all queries together, a (Q, Q) mask between the groups.

    Args:
        attention: ours.
    """

    def __init__(self, attention: SelfAttention):
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor, position: Tensor, groups: list[int] | None = None) -> Tensor:
        """As ``SelfAttention.forward`` without padding."""
        ours, pairs = self.attention, (x + position).transpose(0, 1)
        attended, _ = F.multi_head_attention_forward(
            pairs,
            pairs,
            x.transpose(0, 1),
            x.shape[-1],
            ours.num_heads,
            ours.in_proj_weight,
            ours.in_proj_bias,
            None,
            None,
            False,
            ours.dropout,
            ours.out_proj.weight,
            ours.out_proj.bias,
            training=self.training,
            need_weights=True,  # as the released program calls it
            attn_mask=group_mask(groups or [x.shape[1]], x.device),
        )
        return attended.transpose(0, 1)


def group_mask(groups: list[int], device: torch.device) -> Tensor:
    """(Q, Q) bool, True where a query must not see another: they are of different groups."""
    group = torch.repeat_interleave(torch.arange(len(groups), device=device), torch.tensor(groups, device=device))
    return group[:, None] != group
