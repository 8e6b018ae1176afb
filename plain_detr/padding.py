"""Where the images of a batch lie on a feature map, and how each keeps clear of the others.

The released Plain-DETR loses accuracy when images of different sizes share a batch: their padding reaches the
backbone, the group norm, the validity of anchors and the limits boxes are clipped to. Two settings undo that:

- *batch independence*: the layers that see pixels next to each other (backbone, up-sampling, projection) run once
  for each distinct image size, so an image meets only the padding that it would have alone. Everything after them
  works on single cells or attends under a mask. Images of one size still share one call. A *pad multiple* above 1
  makes calls fewer: every image, also one alone, is padded to a multiple of that many pixels, and images of equal
  padded size share a call.
- *valid area*: ``"image"`` counts a cell as valid when the image reaches into it, ``ceil(size / stride)``, and takes
  the image's own size as its extent; ``"nearest"`` is the released rule: the pixel mask resized with nearest
  neighbours, and an extent of (valid cells * stride), which may be smaller or larger than the image.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Size = tuple[int, int]  # (height, width)


class FeatureGrid(NamedTuple):
    """The cells of one feature map of the batch, and which of them hold which image.

    Valid cells are always a rectangle at the top left.

    Attributes:
        stride: input pixels per cell.
        hw: (Hf, Wf) of the map of the whole batch.
        own: for each image the (rows, columns) of the map its own call of the backbone gave; at most ``hw``.
        valid: for each image the (rows, columns) that hold it; at most ``own``.
        extent: for each image the (height, width) in pixels that counts as image.
    """

    stride: int
    hw: Size
    own: list[Size]
    valid: list[Size]
    extent: list[Size]

    def padding(self, device: torch.device) -> Tensor:
        """(N, Hf, Wf) bool, True where there is no image."""
        height, width = self.hw
        valid = torch.as_tensor(self.valid, device=device)
        rows = torch.arange(height, device=device) >= valid[:, :1]  # (N, Hf)
        columns = torch.arange(width, device=device) >= valid[:, 1:]  # (N, Wf)
        return rows[:, :, None] | columns[:, None, :]

    def key_padding(self, device: torch.device) -> Tensor | None:
        """(N, L) bool as ``padding``, or None when every cell of every image is valid."""
        if all(valid == self.hw for valid in self.valid):
            return None
        return self.padding(device).flatten(1)

    def extent_wh(self, device: torch.device) -> Tensor:
        """(N, 1, 2) float32 (width, height) in pixels."""
        return sizes_wh(self.extent, device)

    def level(self, stride: int, hw: Size, rule: str) -> "FeatureGrid":
        """The grid of a map of another stride made from this one's, ``hw`` in size; ``rule`` is the valid area's."""
        return level_grid(self, stride, hw, rule)


def size_of(maps: Tensor) -> Size:
    """(height, width) of (..., height, width)."""
    height, width = maps.shape[-2:]
    return height, width


def sizes_wh(sizes: Sequence[Size] | Tensor, device: torch.device) -> Tensor:
    """(height, width) pairs as (N, 1, 2) float32 (width, height)."""
    return torch.as_tensor(sizes, dtype=torch.float32, device=device).flip(1)[:, None]


def group_by_size(sizes: Sequence[Size]) -> list[list[int]]:
    """Indices of images of equal size, one list for each distinct size, in order of first appearance."""
    groups: dict[Size, list[int]] = {}
    for index, size in enumerate(sizes):
        groups.setdefault(size, []).append(index)
    return list(groups.values())


def join_maps(maps: Sequence[Tensor], groups: Sequence[Sequence[int]]) -> Tensor:
    """Put the maps of the groups, (n_g, C, h_g, w_g) each, into one (N, C, max h, max w), zeros elsewhere."""
    if len(groups) == 1:
        return maps[0]
    height, width = (max(part.shape[axis] for part in maps) for axis in (2, 3))
    padded = [F.pad(part, (0, width - part.shape[3], 0, height - part.shape[2])) for part in maps]
    order = [index for group in groups for index in group]
    place = sorted(range(len(order)), key=order.__getitem__)
    return torch.cat(padded)[place]


def cells(size: Size, stride: int) -> Size:
    """(rows, columns) of cells that an image of (height, width) pixels reaches into."""
    return -(-size[0] // stride), -(-size[1] // stride)


def nearest_valid(valid: int, full: int, resized: int) -> int:
    """Length of a row of ``valid`` True out of ``full`` entries after resizing it to ``resized`` entries, nearest."""
    if not resized:
        return 0
    row = (torch.arange(full) < valid).float()
    return int(F.interpolate(row[None, None], size=resized).sum())


def image_grid(sizes: Sequence[Size], hw: Size, own: Sequence[Size], stride: int) -> FeatureGrid:
    """Valid area by the rule ``"image"``; ``sizes`` are the (height, width) of the images in pixels."""
    reached = (cells(size, stride) for size in sizes)
    valid = [(min(rows, most[0]), min(columns, most[1])) for (rows, columns), most in zip(reached, own)]
    return FeatureGrid(stride, hw, list(own), valid, list(sizes))


def nearest_grid(
    sizes: Sequence[Size], padded: Sequence[Size], hw: Size, own: Sequence[Size], stride: int
) -> FeatureGrid:
    """Valid area by the rule ``"nearest"``; ``padded`` are the sizes the images were padded to for the backbone."""
    valid = [
        (max(1, nearest_valid(height, *rows)), max(1, nearest_valid(width, *columns)))
        for (height, width), rows, columns in _by_axis(sizes, padded, own)
    ]
    return FeatureGrid(stride, hw, list(own), valid, [(h * stride, w * stride) for h, w in valid])


def _by_axis(valid: Sequence[Size], full: Sequence[Size], resized: Sequence[Size]) -> Iterator[tuple[Size, Size, Size]]:
    """Of every image the valid (height, width), and the (full, resized) lengths of either axis."""
    for size, before, after in zip(valid, full, resized):
        yield size, (before[0], after[0]), (before[1], after[1])


def resized_hw(hw: Size, stride: int, target: int) -> Size:
    """Size of a map taken from one stride to another by 2x2 convolutions: doubled, or halved and rounded down."""
    if target <= stride:
        return hw[0] * (stride // target), hw[1] * (stride // target)
    return hw[0] // (target // stride), hw[1] // (target // stride)


def level_grid(grid: FeatureGrid, stride: int, hw: Size, rule: str) -> FeatureGrid:
    """The grid of a level made from ``grid``'s map, at another stride and of size ``hw``."""
    if rule == "image":
        return image_grid(grid.extent, hw, [hw] * len(grid.own), stride)
    own = [resized_hw(mine, grid.stride, stride) for mine in grid.own]
    valid = [
        (nearest_valid(height, *rows), nearest_valid(width, *columns))
        for (height, width), rows, columns in _by_axis(grid.valid, grid.own, own)
    ]
    return FeatureGrid(stride, hw, own, valid, [(h * stride, w * stride) for h, w in valid])
