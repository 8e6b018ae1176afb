"""BoxRPB: what a query's box adds to its attention to every pixel (Lin et al., ICCV 2023, section 4.1)."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from plain_detr.modulation.axis_mlp import axis_mlp, axis_mlp_works

# Numbers of the hidden layer held at a time: what is little for a GPU, and what stays in the cache of a CPU.
HIDDEN_NUMBERS = 1 << 23
HIDDEN_NUMBERS_CPU = 1 << 17


class AttentionBias(NamedTuple):
    """Bias of (query, key) logits: by axis, or for every pair.

    Attributes:
        x: (N, heads, Q, Wf), None when ``full`` is given.
        y: (N, heads, Q, Hf), None when ``full`` is given.
        full: (N, heads, Q, Hf * Wf).
    """

    x: Tensor | None = None
    y: Tensor | None = None
    full: Tensor | None = None


def linear_offset(offset: Tensor) -> Tensor:
    """Pixels as they are."""
    return offset


def abs_log8_offset(offset: Tensor) -> Tensor:
    """sign(d) * log2(|d| + 1) / log2(8), Swin V2's scale."""
    return offset.sign() * torch.log2(offset.abs() + 1) / math.log2(8)


OFFSETS = {"linear": linear_offset, "abs_log8": abs_log8_offset}


class BoxRPB(nn.Module):
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
        for mlp in (self.mlp_x, self.mlp_y):
            first, _, last = mlp
            first.weight[:2] = torch.tensor([[1.0, 0.0], [0.0, -1.0]])  # low - x: before; -(high - x): behind
            first.bias[:2] = 0
            last.weight[:, :2] = -self.slope * 0.5 ** torch.arange(len(last.weight))[:, None]

    def forward(self, boxes_cxcywh: Tensor, hw: tuple[int, int], stride: int) -> AttentionBias:
        """Bias of every query towards every cell, float32 also under autocast: offsets are hundreds of pixels.

        Args:
            boxes_cxcywh: (N, Q, 4), pixels of the padded input. Never over the image's size: a box knows no padding.
            hw: (Hf, Wf) of the map.
            stride: input pixels per cell.
        """
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
                return AttentionBias(*(one.unflatten(1, boxes.shape[:2]).transpose(0, 1) for one in (x, y)))
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
    """(N, Q, cells, inputs) -> (N, heads, Q, cells), with a bound on the memory of the hidden layer."""
    if torch.jit.is_tracing() or torch.compiler.is_compiling():
        return mlp(offsets).permute(0, 3, 1, 2)
    first, _, last = mlp
    columns = offsets.flatten(0, 2).t()  # (inputs, R)
    rows = max(1, (HIDDEN_NUMBERS if columns.is_cuda else HIDDEN_NUMBERS_CPU) // first.out_features)
    out = _PiecewiseMLP.apply(columns.contiguous(), first.weight, first.bias, last.weight, rows)
    return out.unflatten(1, offsets.shape[:3]).transpose(0, 1)


class _PiecewiseMLP(torch.autograd.Function):
    """Linear, ReLU, linear without bias, some columns at a time: (inputs, R) -> (outputs, R).

    The hidden layer is computed again for the gradients. It is held with columns last: the few outputs then are rows of
    the last product, and lie as attention wants them.
    """

    @staticmethod
    def forward(ctx, columns, weight, bias, out_weight, rows):
        ctx.save_for_backward(columns, weight, bias, out_weight)
        ctx.rows = rows
        out = columns.new_empty(len(out_weight), columns.shape[1])
        for part in _parts(columns, rows):
            torch.mm(out_weight, _hidden(columns[:, part], weight, bias), out=out[:, part])
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        columns, weight, bias, out_weight = ctx.saved_tensors
        grad_columns = torch.empty_like(columns) if ctx.needs_input_grad[0] else None
        grad_weight, grad_bias, grad_out_weight = (torch.zeros_like(one) for one in (weight, bias, out_weight))
        for part in _parts(columns, ctx.rows):
            hidden = _hidden(columns[:, part], weight, bias)
            grad_out_weight.addmm_(grad[:, part], hidden.t())
            grad_hidden = torch.mm(out_weight.t(), grad[:, part]).mul_(hidden.sign_())
            grad_weight.addmm_(grad_hidden, columns[:, part].t())
            grad_bias += grad_hidden.sum(1)
            if grad_columns is not None:
                grad_columns[:, part] = torch.mm(weight.t(), grad_hidden)
        return grad_columns, grad_weight, grad_bias, grad_out_weight, None


def _hidden(columns: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """(inputs, R) -> (hidden, R)."""
    return torch.addmm(bias[:, None], weight, columns).relu_()


def _parts(columns: Tensor, rows: int) -> list[slice]:
    return [slice(start, start + rows) for start in range(0, columns.shape[1], rows)]
