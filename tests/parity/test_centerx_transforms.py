"""Boxes through the CenterAffine warp against the original's numbers."""

import pytest
import torch

from d2x.data.augment import Warp, window_matrix

from .golden import cases, load


@pytest.mark.parametrize("case", cases("centerx", "transform_boxes"))
def test_transform_boxes(case):
    golden = load("centerx", case)
    options = golden.info["options"]
    size = options["size"]
    width = size[0] if isinstance(size, (list, tuple)) else size  # the original reads only the width
    canvas = (options["height"], options["width"])
    warp = Warp(window_matrix(options["center"], width, canvas), source_hw=(1, 1), canvas_hw=canvas)
    corners = golden.tensors["input.boxes"].reshape(-1, 2).numpy()  # as points: apply_box would sort the two corners
    boxes = warp.inverse().apply_coords(corners).reshape(-1, 4)
    torch.testing.assert_close(torch.from_numpy(boxes), golden.tensors["output.boxes"], rtol=0, atol=1e-3)
