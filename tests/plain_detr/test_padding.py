"""Which cells of a map hold which image."""

import pytest
import torch

from plain_detr.padding import (
    FeatureGrid,
    cells,
    group_by_size,
    image_grid,
    join_maps,
    level_grid,
    nearest_grid,
    nearest_valid,
    resized_hw,
)

CPU = torch.device("cpu")


def test_images_of_equal_size_share_a_group():
    assert group_by_size([(4, 5), (5, 4), (4, 5), (5, 5)]) == [[0, 2], [1], [3]]


def test_joined_maps_come_back_in_order():
    maps = [torch.full((2, 1, 2, 3), 1.0), torch.full((1, 1, 3, 1), 2.0)]
    joined = join_maps(maps, [[0, 2], [1]])
    assert joined.shape == (3, 1, 3, 3)
    assert joined[:, 0, 0, 0].tolist() == [1, 2, 1]
    assert joined[0, 0].tolist() == [[1, 1, 1], [1, 1, 1], [0, 0, 0]]
    assert joined[1, 0].tolist() == [[2, 0, 0]] * 3


def test_a_cell_is_valid_when_the_image_reaches_into_it():
    assert cells((17, 1), 16) == (2, 1)
    grid = image_grid([(17, 1), (32, 48)], (2, 3), [(2, 1), (2, 3)], 16)
    assert grid.padding(CPU)[0].tolist() == [[False, True, True]] * 2
    assert not grid.padding(CPU)[1].any()
    assert grid.extent_wh(CPU).tolist() == [[[1, 17]], [[48, 32]]]


def test_no_mask_where_nothing_is_padded():
    assert FeatureGrid(16, (2, 2), [(2, 2)], [(2, 2)], [(32, 32)]).key_padding(CPU) is None


def test_nearest_rule_is_that_of_the_released_code():
    # README of the goldens: 64 x 101 pixels inside a 90 x 130 batch give 5 x 8 valid cells of a 6 x 10 map.
    grid = nearest_grid([(64, 101)], [(90, 130)], (6, 10), [(6, 10)], 16)
    assert grid.valid == [(5, 8)] and grid.extent == [(80, 128)]
    assert nearest_valid(90, 90, 6) == 6


@pytest.mark.parametrize(("stride", "wanted"), [(8, (10, 14)), (16, (5, 7)), (32, (2, 3)), (64, (1, 1))])
def test_levels_of_a_map(stride, wanted):
    assert resized_hw((5, 7), 16, stride) == wanted


def test_levels_know_the_image_at_their_own_stride():
    grid = image_grid([(40, 100)], (4, 8), [(3, 7)], 16)
    fine, coarse = level_grid(grid, 8, (8, 16), "image"), level_grid(grid, 64, (1, 2), "image")
    assert fine.valid == [(5, 13)] and coarse.valid == [(1, 2)]
    assert fine.extent == coarse.extent == [(40, 100)]
