"""Ground-truth maps and Gaussians against the original's numbers."""

import pytest
import torch

from centerx.gaussian import draw_gaussians, gaussian_radius
from centerx.targets import make_targets

from .golden import cases, load


def released_shape(value: torch.Tensor, rows: int) -> torch.Tensor:
    """Zero rows up to the original's TENSOR_DIM."""
    return torch.cat([value, value.new_zeros(len(value), rows - value.shape[1], *value.shape[2:])], dim=1)


@pytest.mark.parametrize("case", cases("centerx", "ground_truth"))
def test_ground_truth(case):
    golden = load("centerx", case)
    options, tensors = golden.info["options"], golden.tensors
    boxes = [tensors[f"input.boxes.{i}"] for i in range(options["n_images"])]
    before = [b.clone() for b in boxes]
    stride, (height, width) = options["down_scale"], options["image_shape"]
    targets = make_targets(
        boxes,
        [tensors[f"input.classes.{i}"] for i in range(options["n_images"])],
        num_classes=options["num_classes"],
        stride=stride,
        grid_hw=(height // stride, width // stride),
        min_overlap=options["min_overlap"],
        max_boxes=options["tensor_dim"],
    )
    assert all(torch.equal(a, b) for a, b in zip(before, boxes))  # unlike the original
    rows = options["tensor_dim"]
    torch.testing.assert_close(targets.heatmap.dense(), tensors["output.score_map"], rtol=0, atol=1e-6)
    torch.testing.assert_close(released_shape(targets.size, rows), tensors["output.wh"], rtol=0, atol=1e-5)
    torch.testing.assert_close(released_shape(targets.offset, rows), tensors["output.reg"], rtol=0, atol=1e-5)
    assert torch.equal(released_shape(targets.valid, rows).float(), tensors["output.reg_mask"])
    assert torch.equal(released_shape(targets.cell, rows).float(), tensors["output.index"])
    for i, box in enumerate(boxes):
        size = (box[:rows, 2:] - box[:rows, :2]) / stride
        radius = gaussian_radius(size, options["min_overlap"])
        torch.testing.assert_close(radius, tensors[f"output.radius.{i}"], rtol=1e-4, atol=1e-4)
        assert torch.equal(radius.clamp(min=0).int(), tensors[f"output.radius_int.{i}"])


@pytest.mark.parametrize("case", cases("centerx", "gaussian_radius"))
def test_gaussian_radius(case):
    golden = load("centerx", case)
    for overlap in golden.info["options"]["min_overlaps"]:
        radius = gaussian_radius(golden.tensors["input.wh"], overlap)
        torch.testing.assert_close(radius, golden.tensors[f"output.radius.{overlap}"], rtol=1e-4, atol=1e-4)
    for radius in golden.info["options"]["patch_radii"]:
        side = 2 * radius + 1
        at = torch.tensor([radius])
        index, value = draw_gaussians((1, side, side), torch.tensor([0]), at, at, at)
        patch = torch.zeros(side * side).scatter(0, index, value).view(side, side)
        torch.testing.assert_close(patch, golden.tensors[f"output.patch.{radius}"], rtol=0, atol=1e-6)
