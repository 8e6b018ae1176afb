"""Augmentations: a painted rectangle and its box stay together; draws are reproducible; crops keep an object."""

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from hypothesis import example, given, settings
from hypothesis import strategies as st

from d2x.data.augment import BoxCentreCrop, CenterAffine, StrongColour, Warp, ZoomOut, window_matrix


def painted(height, width, box):
    """Black image with a white rectangle, and its box (1, 4)."""
    image = np.zeros((height, width, 3), dtype=np.uint8)
    x0, y0, x1, y1 = box
    image[y0:y1, x0:x1] = 255
    return image, np.array([box], dtype=np.float64)


def seen_box(image):
    """xyxy of what is brighter than half, as the mapper would clip it."""
    ys, xs = np.nonzero(image[:, :, 0] > 127)
    return np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])


def apply(augmentation, image, boxes):
    data = T.AugInput(image.copy(), boxes=boxes.copy())
    transform = augmentation(data)
    return data.image, data.boxes, transform


@st.composite
def rectangles(draw):
    height, width = draw(st.integers(40, 150)), draw(st.integers(40, 150))
    x0, y0 = draw(st.integers(0, width - 21)), draw(st.integers(0, height - 21))
    return height, width, (x0, y0, draw(st.integers(x0 + 20, width)), draw(st.integers(y0 + 20, height)))


@settings(max_examples=60, deadline=None)
@example((121, 137, (0, 0, 23, 121)), (16, 16), 138)
@given(rectangles(), st.sampled_from([(64, 64), (96, 48), (50, 120), (16, 16)]), st.integers(0, 2**31 - 1))
def test_center_affine_moves_boxes_with_the_content(scene, canvas, seed):
    height, width, box = scene
    image, boxes = painted(height, width, box)
    np.random.seed(seed)
    warped, moved, _ = apply(CenterAffine(canvas, border=30), image, boxes)
    assert warped.shape == (*canvas, 3)
    clipped = moved[0].clip(0, [canvas[1], canvas[0]] * 2)
    if min(clipped[2] - clipped[0], clipped[3] - clipped[1]) >= 2:  # less may be blurred below the threshold
        assert np.abs(seen_box(warped) - clipped).max() <= 1.01


@settings(max_examples=30, deadline=None)
@given(rectangles(), st.integers(0, 2**31 - 1))
def test_zoom_out_moves_the_content_unchanged(scene, seed):
    height, width, box = scene
    image, boxes = painted(height, width, box)
    np.random.seed(seed)
    canvas, moved, _ = apply(ZoomOut(prob=1.0, largest=2.0), image, boxes)
    assert seen_box(canvas).tolist() == moved[0].tolist()
    assert (canvas > 0).sum() == (image > 0).sum()


def test_zoom_out_fills_with_the_given_colour():
    np.random.seed(3)
    canvas, _, _ = apply(ZoomOut(prob=1.0, largest=3.0, fill=(10.2, 20, 30)), *painted(20, 20, (0, 0, 20, 20)))
    outside = canvas[canvas[:, :, 0] != 255]
    assert len(outside) and (outside == [10, 20, 30]).all()


def test_warp_inverse_undoes_it():
    warp = Warp(window_matrix((30, 20), 50, (64, 80)), source_hw=(60, 90), canvas_hw=(64, 80))
    boxes = np.array([[3.0, 4, 50, 40], [0, 0, 90, 60]])
    np.testing.assert_allclose(warp.inverse().apply_box(warp.apply_box(boxes)), boxes, atol=1e-9)


def test_warp_shrinks_without_skipping_pixels():
    stripes = np.zeros((64, 64, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    warp = Warp(window_matrix((32, 32), 64, (8, 8)), source_hw=(64, 64), canvas_hw=(8, 8))
    assert np.abs(warp.apply_image(stripes).astype(int) - 128).max() <= 1


def test_window_matrix_centres_the_window():
    # window 50 px wide around (30, 20) on a canvas 100 wide, 60 high: twice as large; its left edge x = 5 goes to 0
    matrix = window_matrix((30, 20), 50, (60, 100))
    assert (matrix @ [5, 20, 1]).tolist() == [0, 30]
    assert (matrix @ [55, 35, 1]).tolist() == [100, 60]


@settings(max_examples=60, deadline=None)
@given(rectangles(), st.sampled_from([("relative_range", (0.3, 0.3)), ("absolute", (25, 30))]), st.integers(0, 2**31))
def test_crop_keeps_a_centre(scene, crop, seed):
    height, width, box = scene
    image, boxes = painted(height, width, box)
    np.random.seed(seed)
    cropped, moved, _ = apply(BoxCentreCrop(*crop), image, boxes)
    x, y = (moved[0, :2] + moved[0, 2:]) / 2
    assert 0 <= x <= cropped.shape[1] and 0 <= y <= cropped.shape[0]
    assert cropped.shape[0] <= height and cropped.shape[1] <= width


@pytest.mark.parametrize("boxes", [np.zeros((0, 4)), np.array([[200.0, 200, 220, 220]])])
def test_crop_without_a_box_in_the_image(boxes):
    cropped, _, _ = apply(BoxCentreCrop("absolute", (10, 12)), np.zeros((30, 40, 3), np.uint8), boxes)
    assert cropped.shape == (10, 12, 3)


@pytest.mark.parametrize(
    "augmentation",
    [
        StrongColour(prob=0.9, most=9),
        CenterAffine((40, 40)),
        ZoomOut(),
        BoxCentreCrop("absolute", (20, 20)),
    ],
)
def test_numpy_seed_decides_and_torch_stays_untouched(augmentation):
    image = np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    boxes = np.array([[10.0, 10, 30, 30]])
    before = torch.random.get_rng_state()
    results = []
    for seed in (5, 5, 6, 7, 8):
        np.random.seed(seed)
        results.append(apply(augmentation, image, boxes)[0])
    assert np.array_equal(results[0], results[1])
    assert any(r.shape != results[0].shape or (r != results[0]).any() for r in results[2:])
    assert torch.equal(before, torch.random.get_rng_state())


def test_colour_leaves_geometry_alone():
    image, boxes = painted(40, 50, (10, 5, 30, 35))
    changed, moved, transform = apply(StrongColour(prob=1.0, most=9), image, boxes)
    assert changed.dtype == np.uint8 and changed.shape == image.shape and (moved == boxes).all()
    assert (transform.apply_segmentation(image[:, :, 0]) == image[:, :, 0]).all()


def test_probability_zero_changes_nothing():
    image, boxes = painted(40, 50, (10, 5, 30, 35))
    for augmentation in (StrongColour(prob=0), ZoomOut(prob=0)):
        assert (apply(augmentation, image, boxes)[0] == image).all()


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="scale_range"):
        CenterAffine((10, 10), scale_range=(0, 1))
    with pytest.raises(ValueError, match="largest"):
        ZoomOut(largest=0.5)
    with pytest.raises(ValueError, match="most"):
        StrongColour(most=0)
