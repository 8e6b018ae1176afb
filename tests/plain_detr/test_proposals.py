"""Anchors scored and selected."""

import pytest
import torch

from plain_detr.box_coder import DeltaCoder, SigmoidCoder
from plain_detr.padding import image_grid
from plain_detr.prediction_head import PredictionHead
from plain_detr.proposals import Proposals

CODERS = {"sigmoid": SigmoidCoder, "delta": lambda: DeltaCoder(anchor_size=8.0)}


def build(coder, strides=(8, 16, 32, 64), **options):
    head = PredictionHead(hidden_dim=32, num_classes=3)
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return Proposals(hidden_dim=32, stride=16, strides=strides, head=head, coder=CODERS[coder](), **options).eval()


def grid_of(*sizes, hw=None):
    own = [(-(-h // 16), -(-w // 16)) for h, w in sizes]
    hw = hw or tuple(max(one[axis] for one in own) for axis in (0, 1))
    return image_grid(sizes, hw, own, 16)


@torch.no_grad()
@pytest.mark.parametrize("coder", CODERS)
def test_training_and_inference_select_the_same(coder):
    proposals, grid, memory = build(coder), grid_of((70, 100)), torch.randn(1, 32, 5, 7)
    full = proposals(memory, grid, 20, all_predictions=True)
    lean = proposals(memory, grid, 20, all_predictions=False)
    assert torch.equal(full.index, lean.index)
    torch.testing.assert_close(full.reference, lean.reference)
    assert lean.prediction is None and full.prediction.logits.shape[1] == 10 * 14 + 5 * 7 + 3 * 4 + 2 * 2 + (
        16 * 16 - 10 * 14 + 8 * 8 - 5 * 7 + 4 * 4 - 3 * 4
    )  # the map is padded to 8 x 8 cells, so that every level halves evenly


@torch.no_grad()
@pytest.mark.parametrize("coder", CODERS)
def test_best_first_by_class_channel_0_and_valid_only(coder):
    proposals, grid = build(coder), grid_of((70, 100), (33, 40))
    memory = torch.randn(2, 32, 5, 7).masked_fill(grid.padding(torch.device("cpu"))[:, None], 0)
    found = proposals(memory, grid, 12, all_predictions=True)
    scores = found.prediction.logits[..., 0].gather(1, found.index)
    assert (scores.diff(dim=1) <= 0).all()
    assert found.prediction.valid.gather(1, found.index).all()
    best = found.prediction.logits[..., 0].masked_fill(~found.prediction.valid, -torch.inf).amax(1)
    assert torch.equal(scores[:, 0], best)


@torch.no_grad()
@pytest.mark.parametrize("everything", [True, False])
def test_class_aware_proposals_are_chosen_by_their_best_class(everything):
    proposals, grid, memory = build("delta", class_aware=True), grid_of((70, 100)), torch.randn(1, 32, 5, 7)
    logits = proposals(memory, grid, 12, all_predictions=True).prediction.logits
    found = proposals(memory, grid, 12, all_predictions=everything)
    best = logits.amax(-1).gather(1, found.index)
    assert (best.diff(dim=1) <= 0).all()
    assert (logits.argmax(-1).gather(1, found.index) > 0).any(), "by class 0 alone these would be other anchors"


@torch.no_grad()
@pytest.mark.parametrize("coder", CODERS)
@pytest.mark.parametrize("everything", [True, False])
def test_too_few_anchors_are_filled_up_with_the_whole_image(coder, everything):
    proposals = build(coder, strides=(16,))
    found = proposals(torch.randn(1, 32, 1, 2), grid_of((16, 32)), 6, all_predictions=everything)
    pixels = proposals.coder.to_pixels(found.reference, found.extent)
    torch.testing.assert_close(pixels[0, -1], torch.tensor([16.0, 8.0, 32.0, 16.0]))
    assert found.reference.shape == (1, 6, 4)


def test_a_stride_that_is_no_power_of_two_away():
    with pytest.raises(ValueError, match="from stride 16 to 48"):
        build("delta", strides=(48,))
