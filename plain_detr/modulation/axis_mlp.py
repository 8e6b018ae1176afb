"""A network of one hidden layer, at every cell of an axis, by where its hidden units bend.

Along an axis the offsets e - x_m between a box's ends and the cells' centres x_m fall together, by one step a cell. A
hidden unit of linear, ReLU, linear is therefore max(0, a + r * m) at cell m: off up to some cell and a straight line
from there, or the other way round, and the outputs are sums of such lines. It is enough to add every unit's value and
slope where it switches on, and to run along the axis once: per query the hidden units plus the cells, not the hidden
units times the cells. Nothing is approximated. ``csrc/axis_mlp.cpp`` does that; sums of the gradients from either end
give the backward pass as cheaply.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from d2x.backbones.tracing import exporting
from plain_detr.attention import cpp_library
from plain_detr.attention.cpp_library import LANES
from plain_detr.attention.self_check import computes_the_same, once

# Queries whose gradients are summed in float32, before the sums of all such groups are in float64.
CHUNK = 256


def axis_mlp(mlp: nn.Sequential, ends: Tensor, cells: int, step: float) -> Tensor:
    """``mlp`` of the offsets from the cells' centres, at step / 2, 3 step / 2, ..., to ``ends``.

    Args:
        mlp: linear, ReLU, linear without bias.
        ends: (P, 1 or 2), pixels, on the CPU.
        cells: of the axis.
        step: pixels of a cell.

    Returns:
        (outputs of the mlp, P, cells), float32.

    Raises:
        RuntimeError: no compiled kernels.
    """
    first, last = linears(mlp)
    with torch.autocast("cpu", enabled=False):
        parts = (ends.float(), first.weight.float(), first.bias.float(), last.weight.float())
        return _axis_mlp(*parts, cells, float(step))


def linears(mlp: nn.Sequential) -> tuple[nn.Linear, nn.Linear]:
    """The two linear layers of a network with one hidden layer."""
    first, last = (layer for layer in mlp if isinstance(layer, nn.Linear))
    return first, last


def axis_mlp_works(ends: Tensor) -> bool:
    """Whether ``axis_mlp`` may be taken: on the CPU, not in an export, and with kernels that are right."""
    return ends.device.type == "cpu" and not exporting() and _proven()


@once
def _proven() -> bool:
    def formula(ends: Tensor, weight: Tensor, bias: Tensor, out_weight: Tensor) -> Tensor:
        offsets = ends[:, None] - (torch.arange(11)[:, None] + 0.5) / 4
        return (F.linear(offsets, weight, bias).relu() @ out_weight.t()).permute(2, 0, 1)

    shapes = [(300, 2), (20, 2), (20,), (5, 20)]
    return cpp_library.library() is not None and computes_the_same(
        "the C++ kernel of the position bias", lambda *parts: _axis_mlp(*parts, 11, 0.25), formula, shapes
    )


class _Units(NamedTuple):
    """The hidden units in terms of a cell counted from the side where they are off; float64 (K, ...) but ``first``."""

    weight: Tensor  # (K, I), of the ends
    bias: Tensor
    rise: Tensor  # by the cell
    origin: Tensor  # position of cell 0 of the side
    direction: Tensor  # 1, or -1 for units that rise towards the first cell
    first: Tensor  # int32, row of the side's cell 0 in the kernel's tables

    def kernel_arguments(self) -> list[Tensor]:
        inverse = 1 / self.rise.clamp(min=1e-30)
        tensors = [part.float().contiguous() for part in (self.weight.t(), self.bias, self.rise, inverse)]
        return [*tensors, self.first]


def _units(weight: Tensor, bias: Tensor, cells: int, step: float) -> _Units:
    weight, bias = weight.double(), bias.double()
    slope = -weight.sum(1)  # along positions
    falls = slope < 0
    origin = torch.where(falls, (cells - 0.5) * step, 0.5 * step)
    direction = torch.where(falls, -1.0, 1.0).double()
    first = (falls * (cells + 1)).int()
    return _Units(weight, bias + slope * origin, slope.abs() * step, origin, direction, first)


def _threads(ends: Tensor) -> int:
    """Two chunks for each at least: torch's own threads still watch for work, and a late helper is waited for."""
    return max(1, min(torch.get_num_threads(), len(ends) // (2 * CHUNK)))


def _lanes(out_weight: Tensor) -> list[Tensor]:
    """(heads, K) -> groups of heads as (K, LANES) float64."""
    padded = F.pad(out_weight.double().t(), (0, -len(out_weight) % LANES))
    return [part.contiguous() for part in padded.split(LANES, dim=1)]


@torch.library.custom_op("plain_detr::axis_mlp", mutates_args=())
def _axis_mlp(ends: Tensor, weight: Tensor, bias: Tensor, out_weight: Tensor, cells: int, step: float) -> Tensor:
    if cpp_library.library() is None:
        raise RuntimeError("axis_mlp needs a C++ compiler and a CPU")
    units, ends, heads = _units(weight, bias, cells, step), ends.contiguous(), len(out_weight)
    out = torch.empty(heads, len(ends), cells)
    for start, table in zip(range(0, heads, LANES), _lanes(out_weight)):
        part = out[start : start + LANES]
        both = torch.stack([table, table * units.rise[:, None]], 1).float()
        cpp_library.call(
            "axis_mlp_forward", ends, *units.kernel_arguments(), both,
            ends.shape[1], len(weight), cells, len(ends), len(part), CHUNK, _threads(ends), part,
        )  # fmt: skip
    return out


@_axis_mlp.register_fake
def _(ends, weight, bias, out_weight, cells, step):
    return ends.new_empty(len(out_weight), len(ends), cells)


@torch.library.custom_op("plain_detr::axis_mlp_backward", mutates_args=())
def _axis_mlp_backward(
    grad: Tensor,
    ends: Tensor,
    weight: Tensor,
    bias: Tensor,
    out_weight: Tensor,
    cells: int,
    step: float,
    of_ends: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of ``ends`` (zeros unless ``of_ends``), ``weight``, ``bias`` and ``out_weight``."""
    units, ends, grad = _units(weight, bias, cells, step), ends.contiguous(), grad.contiguous()
    heads, inputs = len(out_weight), ends.shape[1]
    grad_ends, sums = torch.zeros(ends.shape), []
    for start, table in zip(range(0, heads, LANES), _lanes(out_weight)):
        part = grad[start : start + LANES]
        sums.append(torch.zeros(-(-len(ends) // CHUNK), len(weight), inputs + 2, LANES))
        table_ends = (units.weight[:, :, None] * table[:, None]).float() if of_ends else None
        cpp_library.call(
            "axis_mlp_backward", ends, *units.kernel_arguments(), part,
            inputs, len(weight), cells, len(ends), len(part), CHUNK, _threads(ends),
            sums[-1], table_ends, grad_ends if of_ends else None,
        )  # fmt: skip
    # Of the gradient over a unit's cells: times each end, once, and times the cell; (K, outputs) each.
    by_output = torch.cat([part.double().sum(0) for part in sums], dim=-1)[..., :heads]
    *by_end, once, by_cell = by_output.unbind(1)
    grad_out_weight = units.bias[:, None] * once + units.rise[:, None] * by_cell
    for i, of_end in enumerate(by_end):
        grad_out_weight += units.weight[:, i, None] * of_end
    to_unit = (by_output * out_weight.double().t()[:, None]).sum(-1)  # (K, inputs + 2)
    grad_bias, grad_rise = to_unit[:, inputs], to_unit[:, inputs + 1]
    grad_slope = units.origin * grad_bias + units.direction * step * grad_rise
    grad_weight = to_unit[:, :inputs] - grad_slope[:, None]
    return grad_ends, grad_weight.float(), grad_bias.float(), grad_out_weight.t().float().contiguous()


@_axis_mlp_backward.register_fake
def _(grad, ends, weight, bias, out_weight, cells, step, of_ends):
    return tuple(part.new_empty(part.shape) for part in (ends, weight, bias, out_weight))


def _keep(ctx, inputs, output):
    ends, weight, bias, out_weight, ctx.cells, ctx.step = inputs
    ctx.save_for_backward(ends, weight, bias, out_weight)


def _differentiate(ctx, grad):
    of_ends = ctx.needs_input_grad[0]
    grads = _axis_mlp_backward(grad, *ctx.saved_tensors, ctx.cells, ctx.step, of_ends)
    return grads[0] if of_ends else None, *grads[1:], None, None


_axis_mlp.register_autograd(_differentiate, setup_context=_keep)
