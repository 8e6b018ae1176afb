"""Radius and bumps, with values worked out by hand."""

import math

import pytest
import torch

from centerx.gaussian import draw_gaussians, gaussian_radius


def iou(a, b):
    left, top, right, bottom = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    inter = max(right - left, 0) * max(bottom - top, 0)
    area = [(x[2] - x[0]) * (x[3] - x[1]) for x in (a, b)]
    return inter / (sum(area) - inter)


def draw(grid, *objects):
    index, value = draw_gaussians(grid, *objects)
    return torch.zeros(math.prod(grid)).scatter(0, index, value).view(grid)


@pytest.mark.parametrize("overlap", [0.3, 0.7])
@pytest.mark.parametrize("width, height", [(10.0, 4.0), (7.0, 7.0), (30.0, 50.0)])
def test_no_shift_of_the_corners_by_the_radius_goes_below_the_overlap(width, height, overlap):
    radius = float(gaussian_radius(torch.tensor([width, height]), overlap))
    box = (0.0, 0.0, width, height)
    shifts = [(radius, radius), (radius, -radius), (-radius, -radius), (-radius, radius)]
    worst = min(iou(box, (a, a, width + b, height + b)) for a, b in shifts)
    assert worst == pytest.approx(overlap, abs=1e-4)  # one of the three cases is tight


def test_radius_of_no_boxes_and_of_an_empty_box():
    assert gaussian_radius(torch.zeros(0, 2), 0.7).shape == (0,)
    assert gaussian_radius(torch.zeros(1, 2), 0.7).item() == pytest.approx(0.0, abs=1e-6)


def test_bump_is_cut_at_the_border_and_the_larger_value_stays():
    zero, one = torch.tensor([0, 0]), torch.tensor([1, 1])
    # two bumps of radius 1 on row 0 of a 2 x 4 map, at columns 0 and 2; sigma = 3 / 6
    heatmap = draw((1, 2, 4), zero, torch.tensor([0, 2]), zero, one)[0]
    near, diagonal = math.exp(-1 / (2 * 0.25)), math.exp(-2 / (2 * 0.25))
    # column 1 is next to both: the values are not added; column 0, row 1 is next to the first only
    expected = torch.tensor([[1, near, 1, near], [near, diagonal, near, diagonal]])
    torch.testing.assert_close(heatmap, expected)


def test_drawing_nothing_gives_zeros():
    none = torch.zeros(0, dtype=torch.int64)
    assert draw((2, 3, 5), none, none, none, none).equal(torch.zeros(2, 3, 5))
