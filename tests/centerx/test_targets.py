"""Boxes to maps."""

import torch

from centerx.predictions import SparseHeatmap
from centerx.targets import locate_centres, make_targets

NONE = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)


def make(boxes, classes, **changes):
    settings = {"num_classes": 3, "stride": 4, "grid_hw": (3, 8), "min_overlap": 0.7, **changes}
    return make_targets(boxes, classes, **settings)


def test_cell_index_is_row_major_on_a_wide_grid():
    box = torch.tensor([[16.0, 4.0, 24.0, 8.0]])  # centre (20, 6) px -> (5.0, 1.5) cells, size (2, 1) cells
    targets = make([box], [torch.tensor([2])])
    assert targets.cell.tolist() == [[1 * 8 + 5]]
    assert targets.offset.tolist() == [[[0.0, 0.5]]]
    assert targets.size.tolist() == [[[2.0, 1.0]]]
    assert targets.heatmap.dense().shape == (1, 3, 3, 8)
    assert (targets.heatmap.dense() == 1).nonzero().tolist() == [[0, 2, 1, 5]]


def test_centre_on_the_border_belongs_to_the_last_cell():
    owner, offset = locate_centres(torch.tensor([[28.0, 8.0, 36.0, 16.0]]), 4, (3, 8))  # centre (8, 3) cells
    assert owner.tolist() == [[7, 2]]
    assert offset.tolist() == [[1.0, 1.0]]


def test_no_boxes_in_any_image():
    targets = make([NONE[0], NONE[0]], [NONE[1], NONE[1]])
    assert targets.cell.shape == (2, 0) and targets.size.shape == (2, 0, 2)
    assert targets.heatmap.dense().sum() == 0 and targets.labelled.all()


def test_image_without_boxes_beside_one_with_two_in_one_cell():
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0], [2.0, 2.0, 6.0, 6.0]])  # both centred at (1, 1) cells
    targets = make([NONE[0], boxes], [NONE[1], torch.tensor([0, 0])])
    assert targets.valid.tolist() == [[False, False], [True, True]]
    assert targets.cell.tolist() == [[0, 0], [9, 9]]
    heatmap = targets.heatmap.dense()
    assert heatmap[0].sum() == 0 and (heatmap[1] == 1).sum() == 1


def test_boxes_past_the_limit_become_background():
    boxes = torch.tensor([[0.0, 0.0, 8.0, 8.0], [16.0, 0.0, 24.0, 8.0]])
    targets = make([boxes], [torch.tensor([0, 1])], max_boxes=1)
    assert targets.valid.tolist() == [[True]] and targets.heatmap.dense()[0, 1].sum() == 0


def test_a_batch_is_its_images():
    torch.manual_seed(3)
    boxes = [torch.rand(n, 2) * torch.tensor([20.0, 8.0]) for n in (3, 1)]
    boxes = [torch.cat([corner, corner + 5], dim=1) for corner in boxes]
    classes = [torch.tensor([0, 1, 2]), torch.tensor([1])]
    together = make(boxes, classes)
    for i in range(2):
        alone = make(boxes[i : i + 1], classes[i : i + 1])
        # The exponential of a long array may round its last elements otherwise, so 4 roundings are let pass.
        torch.testing.assert_close(together.heatmap.dense()[i], alone.heatmap.dense()[0], rtol=2**-22, atol=0)
        assert torch.equal(together.cell[i, : len(boxes[i])], alone.cell[0])


def test_drawn_cells_come_once_and_ascending():
    boxes = torch.tensor([[8.0, 0.0, 24.0, 12.0], [0.0, 0.0, 16.0, 12.0], [2.0, 2.0, 30.0, 10.0]])
    heatmap = make([boxes], [torch.tensor([1, 1, 0])], min_overlap=0.3).heatmap
    assert (heatmap.index.diff() > 0).all() and heatmap.value.min() > 0
    again = SparseHeatmap.of(heatmap.dense())
    assert torch.equal(again.index, heatmap.index) and torch.equal(again.value, heatmap.value)
    assert (heatmap.dense() == 1).sum() == 3


def test_labelled_classes_become_a_mask():
    targets = make([NONE[0]] * 3, [NONE[1]] * 3, labelled_classes=[None, torch.tensor([1]), torch.tensor([0, 2])])
    assert targets.labelled.int().tolist() == [[1, 1, 1], [0, 1, 0], [1, 0, 1]]


def test_inputs_are_not_changed_and_float64_boxes_are_fine():
    boxes = torch.tensor([[16.0, 4.0, 24.0, 8.0]], dtype=torch.float64)
    before = boxes.clone()
    assert make([boxes], [torch.tensor([0])]).size.dtype == torch.float32
    assert torch.equal(boxes, before)
