"""Costs and assignments of the released matcher, its pairing fault included."""

import pytest
import torch

from plain_detr.box_coder import DeltaCoder, encode_deltas
from plain_detr.hybrid import MatchTask
from plain_detr.matcher import HungarianMatcher
from plain_detr.predictions import BoxSetPrediction, SetTargets
from plain_detr.set_losses import LossWeights
from tests.parity.golden import cases, load
from tests.parity.plain_detr_parts import check, coder_of_loss, packed_targets


@pytest.mark.parametrize("name", cases("plain_detr", "matcher"))
def test_costs_and_pairs_equal_the_released_ones(name):
    case = load("plain_detr", name)
    options, given, wanted = case.info["options"], case.group("input"), case.group("output")
    boxes = given["pred_boxes"]
    raw, reference = given.get("pred_deltas", boxes), given.get("pred_boxes_old", boxes)
    prediction = BoxSetPrediction(given["pred_logits"], boxes, raw, reference)
    targets = packed_targets(case, len(boxes))
    matcher = HungarianMatcher(
        coder=coder_of_loss(options),
        cost=LossWeights(options["cost_class"], options["cost_bbox"], options["cost_giou"]),
        released_pairing=True,
    )
    costs = matcher.cost_matrix(prediction, targets).split(targets.counts)
    (found,) = matcher([MatchTask(prediction, "")], targets)
    first = 0
    for image, (cost, count) in enumerate(zip(costs, targets.counts)):
        check(f"cost {image}", cost.T, wanted[f"cost.{image}"], case.info["tolerance"]["output"])
        mine = found.image == image
        ours = sorted(zip(found.query[mine].tolist(), (found.target[mine] - first).tolist()))
        theirs = (wanted[f"match.{image}.{side}"].tolist() for side in ("src", "tgt"))
        assert ours == sorted(zip(*theirs)), f"image {image}"
        first += count


def test_the_pairing_fault_is_off_by_default():
    boxes = torch.tensor([[[20.0, 20, 10, 10], [60.0, 60, 20, 20]]])
    prediction = BoxSetPrediction(torch.zeros(1, 2, 1), boxes, torch.zeros(1, 2, 4), boxes)
    targets = SetTargets.pack([boxes[0].flip(0)], [torch.zeros(2, dtype=torch.int64)])
    weights = LossWeights(classification=0.0, box=1.0, giou=0.0)
    right = HungarianMatcher(coder=DeltaCoder(), cost=weights).cost_matrix(prediction, targets)
    torch.testing.assert_close(right, encode_deltas(boxes, targets.boxes[:, None]).abs().sum(-1))
    faulty = HungarianMatcher(coder=DeltaCoder(), cost=weights, released_pairing=True)
    assert not torch.allclose(faulty.cost_matrix(prediction, targets), right)
