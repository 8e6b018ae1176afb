"""BoxRPB: what a query's box adds to its attention to every pixel (Lin et al., ICCV 2023, section 4.1)."""

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from d2x.backbones.tracing import recording
from plain_detr.modulation.axis_mlp import axis_mlp, axis_mlp_works, linears
from plain_detr.modulation.base import AttentionBias, Modulation

# Numbers of the hidden layer held at a time: what is little for a GPU, and what stays in the cache of a CPU.
HIDDEN_NUMBERS = 1 << 23
HIDDEN_NUMBERS_CPU = 1 << 17


def linear_offset(offset: Tensor) -> Tensor:
    """Pixels as they are."""
    return offset


def abs_log8_offset(offset: Tensor) -> Tensor:
    """sign(d) * log2(|d| + 1) / log2(8), Swin V2's scale."""
    return offset.sign() * torch.log2(offset.abs() + 1) / math.log2(8)


OFFSETS = {"linear": linear_offset, "abs_log8": abs_log8_offset}


class BoxRPB(Modulation):
    """Box-to-pixel relative position bias.

    For a box (x1, y1, x2, y2) and the centre (x_j, y_i) of cell (i, j), all in pixels:

    - ``axial=True`` (eq. 4): MLP_x(x1 - x_j, x2 - x_j) + MLP_y(y1 - y_i, y2 - y_i): cost grows with Wf + Hf;
    - ``axial=False`` (eq. 3): MLP(x1 - x_j, y1 - y_i, x2 - x_j, y2 - y_i): cost grows with Wf * Hf. For ablations.

    Args:
        num_heads: outputs of the MLPs.
        hidden_dim: their one hidden layer.
        offsets: "linear" or "abs_log8", what the MLPs see of a difference.
        axial: see above.
        corners: False replaces the two corners by the box's centre.
        slope: how steeply the first head's logits fall outside a box at the start, in logits a pixel, see
            ``reset_parameters``; 0 starts as any linear layer here.

    Raises:
        ValueError: an unknown ``offsets``; ``slope`` with another form than axial, linear, both corners.
    """

    def __init__(
        self,
        *,
        num_heads: int,
        hidden_dim: int = 512,
        offsets: str = "linear",
        axial: bool = True,
        corners: bool = True,
        slope: float = 0.0,
    ):
        super().__init__()
        if offsets not in OFFSETS:
            raise ValueError(f"BOX_RPB.OFFSETS must be one of {', '.join(OFFSETS)}, got '{offsets}'")
        self.scale, self.axial, self.corners = OFFSETS[offsets], axial, corners
        if slope and not (axial and corners and offsets == "linear"):
            raise ValueError("BOX_RPB.SLOPE needs BOX_RPB.KIND 'axial', OFFSETS 'linear' and CORNERS True")
        self.slope = slope
        inputs = 2 if corners else 1
        if axial:
            self.mlp_x = _mlp(inputs, hidden_dim, num_heads)
            self.mlp_y = _mlp(inputs, hidden_dim, num_heads)
        else:
            self.mlp = _mlp(2 * inputs, hidden_dim, num_heads)

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Make attention start inside the box (ours, not the paper's); nothing is done where ``slope`` is 0.

        Two hidden units of each axis become the distances that a cell lies before and behind the box, and count
        against it in the logits: by ``slope`` a pixel in the first head, half of it in the second, and so on. What the
        bias can learn does not change. From a flat start a small model spends much of its training to find out that
        an object's pixels are where its box is.
        """
        if not self.slope:
            return
        for first, last in map(linears, (self.mlp_x, self.mlp_y)):
            first.weight[:2] = torch.tensor([[1.0, 0.0], [0.0, -1.0]])  # low - x: before; -(high - x): behind
            first.bias[:2] = 0
            last.weight[:, :2] = -self.slope * 0.5 ** torch.arange(len(last.weight))[:, None]

    def forward(
        self, boxes_cxcywh: Tensor, hw: tuple[int, int], stride: int, queries: Tensor | None = None
    ) -> AttentionBias:
        """See ``Modulation``; what a query is about does not count."""
        with torch.autocast(boxes_cxcywh.device.type, enabled=False):
            boxes = boxes_cxcywh.float()
            ends = boxes[..., :2, None]  # (N, Q, 2 axes, 1 centre)
            if self.corners:
                half = boxes[..., 2:, None] / 2
                ends = torch.cat([ends - half, ends + half], dim=-1)  # (N, Q, 2 axes, 2 corners)
            if self.axial and self.scale is linear_offset and axis_mlp_works(boxes):
                x, y = (
                    axis_mlp(mlp, ends[:, :, axis].flatten(0, 1), hw[1 - axis], stride)
                    for axis, mlp in enumerate((self.mlp_x, self.mlp_y))
                )
                x, y = (axis.unflatten(1, boxes.shape[:2]).transpose(0, 1) for axis in (x, y))
                return AttentionBias(x, y)
            y, x = (
                (torch.arange(size, dtype=torch.float32, device=boxes.device) + 0.5)[:, None] * stride for size in hw
            )
            x = self.scale(ends[:, :, None, 0] - x)  # (N, Q, Wf, 1 or 2)
            y = self.scale(ends[:, :, None, 1] - y)  # (N, Q, Hf, 1 or 2)
            if self.axial:
                return AttentionBias(_apply(self.mlp_x, x), _apply(self.mlp_y, y))
            x, y = (axis.expand(-1, -1, *hw, -1) for axis in (x[:, :, None], y[:, :, :, None]))
            pairs = torch.stack([x, y], dim=-1).flatten(-2)  # x1, y1, x2, y2
            return AttentionBias(full=_apply(self.mlp, pairs.flatten(2, 3)))


def _mlp(inputs: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, outputs, bias=False))


def _apply(mlp: nn.Sequential, offsets: Tensor) -> Tensor:
    """(N, Q, cells, inputs) -> (N, heads, Q, cells), with a bound on the memory of the hidden layer.

    Some offsets at a time, the hidden layer computed again for the gradients. It is held with the offsets last: the few
    outputs then are rows of the last product, and lie as attention wants them.
    """
    if recording():
        return mlp(offsets).permute(0, 3, 1, 2)
    first, last = linears(mlp)
    columns = offsets.flatten(0, 2).t()  # (inputs, R)
    step = max(1, (HIDDEN_NUMBERS if columns.is_cuda else HIDDEN_NUMBERS_CPU) // first.out_features)
    weights = first.weight, first.bias, last.weight
    parts = [
        checkpoint(_mlp_of_columns, part, *weights, use_reentrant=False, preserve_rng_state=False)
        for part in columns.split(step, dim=1)
    ]
    return torch.cat(parts, dim=1).unflatten(1, offsets.shape[:3]).transpose(0, 1)


def _mlp_of_columns(columns: Tensor, weight: Tensor, bias: Tensor, out_weight: Tensor) -> Tensor:
    """(inputs, R) -> (outputs, R)."""
    return out_weight @ torch.addmm(bias[:, None], weight, columns).relu_()
