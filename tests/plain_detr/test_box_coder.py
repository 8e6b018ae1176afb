"""Both ways of writing a box."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plain_detr.box_coder import (
    BOX_CODERS,
    DeltaCoder,
    SigmoidCoder,
    cxcywh_to_xyxy,
    decode_deltas,
    encode_deltas,
    inverse_sigmoid,
    xyxy_to_cxcywh,
)
from plain_detr.padding import image_grid

CPU = torch.device("cpu")
sizes = st.integers(2, 1333)
fractions = st.floats(0.0, 1.0, width=32)


@st.composite
def boxes_in_image(draw):
    """(cx, cy, w, h) in pixels of an image (width, height), at least half a pixel each side."""
    width, height = draw(sizes), draw(sizes)
    corners = []
    for side in (width, height):
        low = draw(fractions) * (side - 0.5)
        corners.append((low, low + 0.5 + draw(fractions) * (side - low - 0.5)))
    (x0, x1), (y0, y1) = corners
    return torch.tensor([[(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]]), torch.tensor([[width, height]])


@settings(max_examples=60, deadline=None)
@given(boxes_in_image())
def test_corners_and_centres_are_inverse(case):
    boxes, _ = case
    torch.testing.assert_close(xyxy_to_cxcywh(cxcywh_to_xyxy(boxes)), boxes, rtol=1e-5, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(boxes_in_image(), st.sampled_from(sorted(BOX_CODERS)))
def test_pixels_and_coder_space_are_inverse(case, name):
    boxes, extent = case
    coder = BOX_CODERS[name]()
    torch.testing.assert_close(coder.to_pixels(coder.from_pixels(boxes, extent), extent), boxes, rtol=1e-5, atol=1e-3)


@settings(max_examples=60, deadline=None)
@given(boxes_in_image(), st.lists(st.floats(-0.375, 0.375, width=32), min_size=4, max_size=4))
def test_deltas_are_inverse(case, moves):
    boxes, extent = case
    reference = boxes + torch.tensor([moves]) * boxes[:, 2:].repeat(1, 2)
    deltas = encode_deltas(reference, boxes, margin=0.0)
    torch.testing.assert_close(decode_deltas(reference, deltas, extent.float()), boxes, rtol=1e-4, atol=1e-2)


@settings(max_examples=60, deadline=None)
@given(boxes_in_image(), st.lists(fractions, min_size=4, max_size=4))
def test_sigmoid_boxes_are_inverse(case, start):
    boxes, extent = case
    coder = SigmoidCoder()
    reference = torch.tensor([start]).clamp(0.01, 0.99)
    wanted = coder.from_pixels(boxes, extent).clamp(1e-4, 1 - 1e-4)
    raw = inverse_sigmoid(wanted) - inverse_sigmoid(reference)
    torch.testing.assert_close(coder.decode(reference, raw, extent), wanted, rtol=1e-3, atol=1e-5)


@settings(max_examples=60, deadline=None)
@given(boxes_in_image(), st.lists(st.floats(-50, 50, width=32), min_size=4, max_size=4))
def test_decoded_delta_boxes_lie_in_the_image(case, raw):
    boxes, extent = case
    corners = cxcywh_to_xyxy(DeltaCoder().decode(boxes, torch.tensor([raw]), extent.float()))
    slack = 1e-3
    assert (corners >= -slack).all() and (corners <= extent.repeat(1, 2) + slack).all()
    assert (corners[:, 2:] >= corners[:, :2] - slack).all()


def test_the_scale_of_a_step_is_bounded():
    reference = torch.tensor([[0.0, 0.0, 16.0, 16.0]])
    decoded = decode_deltas(reference, torch.tensor([[0.0, 0.0, 99.0, -99.0]]))
    torch.testing.assert_close(decoded, torch.tensor([[0.0, 0.0, 1000.0, 0.256]]))


def test_the_clip_stops_gradients():
    raw = torch.tensor([[5.0, 0.0, 0.0, 0.0]], requires_grad=True)
    DeltaCoder().decode(torch.tensor([[50.0, 50, 20, 20]]), raw, torch.tensor([[60.0, 100.0]]))[:, 0].sum().backward()
    assert raw.grad[0, 0] == 0  # both corners lie right of the image


@pytest.mark.parametrize("coder", [SigmoidCoder(), DeltaCoder(anchor_size=8.0)])
def test_anchors_sit_on_cell_centres_and_know_their_validity(coder):
    # Two images of 32 x 48 and 20 x 16 pixels on a map of 2 x 3 cells of 16 pixels.
    grid = image_grid([(32, 48), (20, 16)], (2, 3), [(2, 3), (2, 1)], 16)
    boxes, valid = coder.anchors([grid], CPU)
    extent = coder.extent(grid, [grid], CPU)
    pixels = coder.to_pixels(boxes, extent)
    centres = [[8, 8], [24, 8], [40, 8], [8, 24], [24, 24], [40, 24]]
    torch.testing.assert_close(pixels[0, :, :2], torch.tensor(centres, dtype=torch.float32))
    assert valid[0].all()
    # The second image has one column of cells; the centre of its second row is below the image.
    assert valid[1].tolist() == [True, False, False, False, False, False]
