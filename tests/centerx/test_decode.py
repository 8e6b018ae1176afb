"""Peaks to boxes."""

import pytest
import torch

from centerx.decode import decode, keep_peaks, keep_peaks_without_equality
from centerx.targets import make_targets


def test_box_of_a_single_peak_on_a_wide_map():
    heatmap = torch.zeros(1, 2, 3, 8)
    heatmap[0, 1, 1, 5] = 0.9
    size, offset = torch.zeros(1, 2, 3, 8), torch.zeros(1, 2, 3, 8)
    size[0, :, 1, 5], offset[0, :, 1, 5] = torch.tensor([4.0, 2.0]), torch.tensor([0.25, 0.5])
    found = decode(heatmap, size, offset, 1)
    assert found.boxes.tolist() == [[[5.25 - 2, 1.5 - 1, 5.25 + 2, 1.5 + 1]]]
    assert found.scores.tolist() == [[pytest.approx(0.9)]]
    assert found.classes.tolist() == [[1]] and found.cell.tolist() == [[13]]
    centred = decode(heatmap, size, None, 1)
    assert centred.boxes.tolist() == [[[5.5 - 2, 1.5 - 1, 5.5 + 2, 1.5 + 1]]]


def test_targets_decode_to_their_boxes():
    boxes = torch.tensor([[3.0, 1.0, 21.0, 9.0], [40.0, 16.0, 47.0, 30.0]])
    targets = make_targets([boxes], [torch.tensor([0, 2])], num_classes=3, stride=4, grid_hw=(8, 16), min_overlap=0.7)
    size, offset = (torch.zeros(1, 2, 128) for _ in range(2))
    size[0, :, targets.cell[0]], offset[0, :, targets.cell[0]] = targets.size[0].T, targets.offset[0].T
    found = decode(targets.heatmap.dense(), size.view(1, 2, 8, 16), offset.view(1, 2, 8, 16), 2)
    torch.testing.assert_close(found.boxes[0] * 4, boxes)
    assert found.classes.tolist() == [[0, 2]]


def test_equal_scores_come_by_class_row_column_and_filler_last():
    heatmap = torch.zeros(1, 2, 4, 6)
    for kind, y, x, score in ((1, 0, 0, 0.5), (0, 3, 5, 0.5), (0, 0, 3, 0.5), (1, 3, 3, 0.8)):
        heatmap[0, kind, y, x] = score
    found = decode(heatmap, torch.ones(1, 2, 4, 6), None, 6)
    assert list(zip(found.classes[0].tolist(), found.cell[0].tolist()))[:4] == [(1, 21), (0, 3), (0, 23), (1, 0)]
    assert found.scores[0, 4:].tolist() == [0, 0]


def test_fewer_entries_than_asked_for():
    assert decode(torch.rand(2, 1, 2, 2), torch.ones(2, 2, 2, 2), None, 100).scores.shape == (2, 4)


def test_neighbour_of_a_peak_is_no_peak_but_every_cell_of_a_plateau_is():
    heatmap = torch.tensor([[[[0.5, 0.9, 0.1], [0.2, 0.2, 0.1], [0.1, 0.1, 0.3]]]])
    assert keep_peaks(heatmap)[0, 0].tolist()[0] == [0, pytest.approx(0.9), 0]
    assert (keep_peaks(torch.full((1, 1, 2, 2), 0.4)) > 0).all()
    torch.testing.assert_close(keep_peaks_without_equality(heatmap), keep_peaks(heatmap))
