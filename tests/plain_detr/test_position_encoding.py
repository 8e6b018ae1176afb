"""Sine codes of cells and boxes."""

import math

import torch

from plain_detr.padding import image_grid
from plain_detr.position_encoding import box_code, grid_code, sine_code

CPU = torch.device("cpu")


def test_sine_and_cosine_alternate_and_slow_down():
    code = sine_code(torch.tensor([1.5]), 4)[0]
    slow = 1.5 / 10000 ** (2 / 4)
    wanted = [math.sin(1.5), math.cos(1.5), math.sin(slow), math.cos(slow)]
    torch.testing.assert_close(code, torch.tensor(wanted))


def test_y_comes_first_and_one_cell_is_a_turn():
    grid = image_grid([(32, 48)], (2, 3), [(2, 3)], 16)
    code = grid_code(grid, 8, normalize=False, device=CPU)
    assert code.shape == (1, 2, 3, 8)
    torch.testing.assert_close(code[0, 1, 2, :4], sine_code(torch.tensor(2 * math.pi * 1.5), 4))
    torch.testing.assert_close(code[0, 1, 2, 4:], sine_code(torch.tensor(2 * math.pi * 2.5), 4))


def test_normalised_codes_span_the_image_whatever_the_padding():
    alone = grid_code(image_grid([(32, 32)], (2, 2), [(2, 2)], 16), 8, normalize=True, device=CPU)
    padded = grid_code(image_grid([(32, 32)], (4, 5), [(2, 2)], 16), 8, normalize=True, device=CPU)
    torch.testing.assert_close(padded[:, :2, :2], alone)
    assert padded.isfinite().all()


def test_boxes_have_a_quarter_of_the_channels_for_each_number():
    boxes = torch.tensor([[[0.1, 0.2, 0.3, 0.4]]])
    code = box_code(boxes, 16)[0, 0]
    for index, value in enumerate(boxes[0, 0]):
        torch.testing.assert_close(code[4 * index : 4 * index + 4], sine_code(2 * math.pi * value, 4))
