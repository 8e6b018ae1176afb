"""Gaussian radius and drawing for heatmap targets."""

import torch
from torch import Tensor


def gaussian_radius(size: Tensor, min_overlap: float) -> Tensor:
    """Largest shift of a box's corners that keeps its IoU with the box at ``min_overlap``.

    The three cases of CornerNet (arXiv:1808.01244, section 3.2): one corner moves in and the other out, both move in,
    both move out. These are the roots of their quadratics, not the widely copied version that divides the first two
    wrongly.

    Args:
        size: (..., 2) as (width, height), any unit.
        min_overlap: IoU in (0, 1).

    Returns:
        (...) radius in the unit of ``size``, not rounded; may be a rounding error below 0 for an empty box.
    """
    width, height = size.unbind(-1)
    total, area = height + width, width * height
    shifted = (total - (total**2 - 4 * (area * (1 - min_overlap) / (1 + min_overlap))).sqrt()) / 2
    inside = (2 * total - (4 * total**2 - 16 * ((1 - min_overlap) * area)).sqrt()) / 8
    slope = -2 * min_overlap * total
    outside = (slope + (slope**2 - 16 * min_overlap * ((min_overlap - 1) * area)).sqrt()) / (8 * min_overlap)
    return torch.minimum(torch.minimum(shifted, inside), outside)


def draw_gaussians(
    grid: tuple[int, int, int], plane: Tensor, x: Tensor, y: Tensor, radius: Tensor
) -> tuple[Tensor, Tensor]:
    """Draw one bump per object, all at once; where bumps overlap the larger value stays.

    A bump is ``exp(-(dx^2 + dy^2) / (2 sigma^2))`` with ``sigma = (2 r + 1) / 6`` on the (2 r + 1)^2 cells around the
    centre, cut at the border of the map. Memory grows with the cells drawn, not with the map or with objects times
    cells.

    Args:
        grid: (planes, Hf, Wf).
        plane, x, y, radius: (M,) int64; which map, column, row, and radius in cells.

    Returns:
        index: (T,) int64, the cells drawn, ascending, into the flattened grid.
        value: (T,) float32.
    """
    _, height, width = grid
    side = 2 * radius + 1
    cells = side * side
    owner = torch.repeat_interleave(cells)
    rank = torch.arange(len(owner), device=owner.device) - (cells.cumsum(0) - cells)[owner]
    side, radius = side[owner], radius[owner]
    dx, dy = rank % side - radius, rank // side - radius
    column, row = x[owner] + dx, y[owner] + dy
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    value = torch.exp(-(dx * dx + dy * dy) / (2 * (side / 6) ** 2))[inside]
    index, place = ((plane[owner] * height + row) * width + column)[inside].unique(return_inverse=True)
    return index, value.new_zeros(len(index)).scatter_reduce_(0, place, value, "amax")
