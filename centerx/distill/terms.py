"""Distillation terms: what a dense detector's maps are pulled towards, and how hard.

Works on any detector that has, per cell, one logit a class and some regressed channels; CenterX's heatmap, size and
offset are the first such case, the levels of an FCOS another.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from centerx.decode import keep_peaks
from centerx.predictions import CenterPredictions
from d2x.engine.losses.normalizer import shared_normalizer
from d2x.errors import require_choice

DEFINITIONS = ("released", "article")
LEAKY_SLOPE = 0.01  # of the released code; it only shows for maps that are no probabilities
EPSILON = 1e-4


class Route(NamedTuple):
    """Which of a teacher's classes teach which of the student's.

    teacher_channels, student_channels: (C_t,) each; the i-th of one belongs to the i-th of the other.
    shares: (C_t,) in (0, 1], the teacher's part in teaching each class; below 1 where several teachers are averaged.
    """

    teacher_channels: tuple[int, ...]
    student_channels: tuple[int, ...]
    shares: tuple[float, ...]


def heatmap_term(student: Tensor, teacher: Tensor, shares: Tensor | None = None) -> Tensor:
    """Mean squared error of two heatmaps after leaky ReLU, as released; on probabilities that ReLU changes nothing.

    Args:
        student, teacher: (N, C_t, Hf, Wf), the same classes in the same order.
        shares: (C_t,), see ``Route``.
    """
    squared = (F.leaky_relu(student, LEAKY_SLOPE) - F.leaky_relu(teacher, LEAKY_SLOPE)) ** 2
    return (squared if shares is None else squared * shares[:, None, None]).mean()


def regression_term(
    student: Tensor, teacher: Tensor, mask: Tensor, *, shares: Tensor | None = None, scale: Tensor | None = None
) -> Tensor:
    """Sum over cells and channels of ``|student - teacher| * mask``, divided by the mask's sum, each cell counted once.

    Args:
        student, teacher: (N, R, Hf, Wf), or per class (N, C_t, R, Hf, Wf).
        mask: (N, C_t, Hf, Wf), not negative: how much each cell matters to each class. For maps that all classes share
            the largest over the classes counts.
        shares: (C_t,), see ``Route``.
        scale: errors are divided by it; broadcasts against ``student``.
    """
    weighted = mask if shares is None else mask * shares[:, None, None]
    if student.dim() == 4:
        mask, weighted = mask.amax(1, keepdim=True), weighted.amax(1, keepdim=True)
    else:
        weighted = weighted[:, :, None]
    error = (student - teacher).abs() * weighted
    if scale is not None:
        error = error / scale
    return error.sum() / shared_normalizer(mask.sum(), epsilon=EPSILON)


class DistillationLoss:
    """The three distillation terms of one teacher, weighted.

    Definition "released" (the CenterX code): heatmaps are probabilities, compared by their mean squared error; sizes
    and offsets by L1 at the teacher's 3x3 peaks, weighted by the score there, over the sum of those scores.
    Definition "article" (its author's text): heatmap logits after ReLU, mean squared error; sizes and offsets by L1 at
    every cell, weighted by the teacher's logit after ReLU.

    Args:
        definition: "released" or "article".
        weight: of the teacher, multiplies the three below.
        heatmap_weight, size_weight, offset_weight: of each term.
        norm_size: divide a size error by the mean of the teacher's width and height there.
        min_size: that mean counts as at least this, in cells; the released code has no limit (0), and blows up where a
            teacher predicts a size of nearly -1e-4.

    Raises:
        ValueError: unknown definition.
    """

    def __init__(
        self,
        *,
        definition: str = "released",
        weight: float = 1.0,
        heatmap_weight: float = 1000.0,
        size_weight: float = 1.0,
        offset_weight: float = 0.1,
        norm_size: bool = False,
        min_size: float = 0.0,
    ):
        require_choice("DISTILL.DEFINITION", definition, DEFINITIONS)
        self.definition = definition
        self.heatmap_weight = weight * heatmap_weight
        self.size_weight, self.offset_weight = weight * size_weight, weight * offset_weight
        self.norm_size, self.min_size = norm_size, min_size

    def __call__(self, student: CenterPredictions, teacher: CenterPredictions, route: Route) -> dict[str, Tensor]:
        """Terms "cls" (heatmap), "wh" (size) and "off" (offset, if both have it): weighted scalars, in float32.

        The teacher's maps must lie on the student's grid and carry no gradient.
        """
        student_heatmap = self.activate(student.heatmap_logits)[:, list(route.student_channels)]
        teacher_heatmap = self.activate(teacher.heatmap_logits)[:, list(route.teacher_channels)]
        student_size, teacher_size = _per_class_or_shared(
            student.size, teacher.size, route, self.mask(teacher_heatmap), student.heatmap_logits.shape[1]
        )
        offsets = None
        if student.offset is not None and teacher.offset is not None:
            offsets = student.offset, teacher.offset
        return self.from_heatmaps(
            student_heatmap, teacher_heatmap, (student_size, teacher_size), offsets, shares=route.shares
        )

    def activate(self, logits: Tensor) -> Tensor:
        """Heatmap logits to what is compared: probabilities (released) or what ReLU leaves (article)."""
        return logits.float().sigmoid() if self.definition == "released" else logits.float().relu()

    def mask(self, teacher_heatmap: Tensor) -> Tensor:
        """(N, C_t, Hf, Wf): how much each cell's size and offset matter."""
        heatmap = teacher_heatmap.relu()
        return keep_peaks(heatmap) if self.definition == "released" else heatmap

    def from_heatmaps(
        self,
        student_heatmap: Tensor,
        teacher_heatmap: Tensor,
        sizes: tuple[Tensor, Tensor],
        offsets: tuple[Tensor, Tensor] | None,
        *,
        shares: Sequence[float] | None = None,
        mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The terms from activated heatmaps, (N, C_t, Hf, Wf) each, and (student, teacher) pairs of the other maps.

        ``mask`` is the teacher heatmap's (see :meth:`mask`) unless it is given. The channels of ``sizes`` add up to
        width + height, whatever they are.
        """
        weights = None
        if shares is not None and any(share != 1 for share in shares):
            weights = teacher_heatmap.new_tensor(shares)
        mask = self.mask(teacher_heatmap) if mask is None else mask
        scale = None
        if self.norm_size:
            channel = sizes[1].dim() - 3
            scale = (sizes[1].sum(channel, keepdim=True) / 2 + EPSILON).float()
            # a head may predict negative sizes; the released code takes the absolute value of the quotient
            scale = scale.clamp(min=self.min_size) if self.min_size > 0 else scale.abs()
        terms = {
            "cls": self.heatmap_weight * heatmap_term(student_heatmap, teacher_heatmap, weights),
            "wh": self.size_weight * regression_term(*sizes, mask, shares=weights, scale=scale),
        }
        if offsets is not None:
            terms["off"] = self.offset_weight * regression_term(*offsets, mask, shares=weights)
        return terms


def _per_class_or_shared(
    student: Tensor, teacher: Tensor, route: Route, mask: Tensor, student_classes: int
) -> tuple[Tensor, Tensor]:
    """Size maps of both sides in one form: (N, 2, Hf, Wf) when the student's are shared by its classes, else per class.

    For a student with shared sizes, a teacher with one size a class gives that of the class that counts most in a cell.
    """
    grid = student.shape[2:]
    teacher_per_class = teacher.shape[1] > 2
    if teacher_per_class:
        teacher = teacher.unflatten(1, (-1, 2))[:, list(route.teacher_channels)]
    if student_classes > 1 and student.shape[1] > 2:
        student = student.unflatten(1, (-1, 2))[:, list(route.student_channels)]
        return student, teacher if teacher_per_class else teacher[:, None].expand_as(student)
    if teacher_per_class:
        best = mask.argmax(1)[:, None, None].expand(-1, 1, 2, *grid)
        teacher = teacher.gather(1, best)[:, 0]
    return student, teacher


def align_to_grid(
    maps: CenterPredictions, *, teacher_stride: int, student_stride: int, grid_hw: tuple[int, int]
) -> CenterPredictions:
    """Resample a teacher's maps to the student's stride and grid.

    Logits and sizes are interpolated bilinearly, sizes re-expressed in the student's cells. An offset says where in its
    cell a centre lies, so the cell that covers the place is read and its centre expressed from the student's corner,
    limited to the student's cell. What the teacher's padding adds beyond the student's grid is cut off.

    Args:
        grid_hw: (Hf, Wf) of the student.
    """
    if teacher_stride != student_stride:
        ratio = teacher_stride / student_stride  # student cells per teacher cell
        height, width = (round(side * ratio) for side in maps.heatmap_logits.shape[2:])

        def resize(x: Tensor) -> Tensor:
            return F.interpolate(x.float(), size=(height, width), mode="bilinear", align_corners=False)

        offset = None if maps.offset is None else _resample_offset(maps.offset, ratio, height, width)
        maps = CenterPredictions(resize(maps.heatmap_logits), resize(maps.size) * ratio, offset)
    rows, columns = grid_hw
    if maps.heatmap_logits.shape[2] < rows or maps.heatmap_logits.shape[3] < columns:
        raise ValueError(
            f"the teacher's maps {tuple(maps.heatmap_logits.shape[2:])} do not cover the student's grid {grid_hw}"
        )
    return maps.each(lambda m: m[..., :rows, :columns])


def _resample_offset(offset: Tensor, ratio: float, height: int, width: int) -> Tensor:
    row, column = (torch.arange(side, device=offset.device) for side in (height, width))
    source_y, source_x = (
        (place / ratio).floor().long().clamp(max=side - 1) for place, side in zip((row, column), offset.shape[2:])
    )
    source = offset.float()[:, :, source_y][:, :, :, source_x]
    x = (source_x + source[:, 0]) * ratio - column
    y = (source_y[:, None] + source[:, 1]) * ratio - row[:, None]
    return torch.stack([x, y], dim=1).clamp(0, 1)
