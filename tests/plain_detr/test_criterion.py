"""Losses worked out by hand, and what they leave out."""

import math

import pytest
import torch

from plain_detr.box_coder import DeltaCoder, SigmoidCoder
from plain_detr.criterion import LossWeights, SetCriterion
from plain_detr.hybrid import MatchTask
from plain_detr.matcher import HungarianMatcher
from plain_detr.predictions import BoxSetPrediction, SetTargets
from plain_detr.set_losses import generalized_iou
from tests.plain_detr.builders import record, tiny_model


def criterion(coder=None, **options):
    coder = coder or SigmoidCoder()
    return SetCriterion(matcher=HungarianMatcher(coder=coder), coder=coder, **options)


def one_query(logit=0.0, box=(0.5, 0.5, 0.2, 0.2)):
    boxes = torch.tensor([[box]])
    return BoxSetPrediction(torch.full((1, 1, 1), logit), boxes, torch.zeros(1, 1, 4), boxes)


def one_box(box=(0.5, 0.5, 0.2, 0.2)):
    return SetTargets.pack([torch.tensor([box])], [torch.zeros(1, dtype=torch.int64)])


def test_values_by_hand():
    # A box moved by half its width: IoU 1/3, nothing else in the hull; L1 0.1; focal 0.25 * 0.5^2 * log 2.
    losses, _ = criterion()([MatchTask(one_query(), "_d0")], one_box((0.6, 0.5, 0.2, 0.2)))
    assert losses["loss_class_d0"].item() == pytest.approx(2 * 0.25 * 0.25 * math.log(2), rel=1e-5)
    assert losses["loss_box_d0"].item() == pytest.approx(5 * 0.1, rel=1e-5)
    assert losses["loss_giou_d0"].item() == pytest.approx(2 * (2 / 3), rel=1e-5)


def test_the_delta_coder_compares_deltas():
    reference = torch.tensor([[[50.0, 50.0, 19.9, 19.9]]])
    raw = torch.tensor([[[0.1, 0.0, 0.0, 0.0]]])
    found = BoxSetPrediction(torch.zeros(1, 1, 1), reference, raw, reference)
    losses, _ = criterion(DeltaCoder(), weights=LossWeights(box=1.0))(
        [MatchTask(found, "")], one_box((60.0, 50.0, 20.0, 20.0))
    )
    assert losses["loss_box"].item() == pytest.approx(0.5 - 0.1, rel=1e-4)  # ten pixels over 19.9 + 0.1


def test_repeats_divide_and_weights_multiply():
    found = BoxSetPrediction(*(part.expand(1, 3, -1) for part in one_query()[:4]))
    once, _ = criterion()([MatchTask(one_query(), "")], one_box((0.6, 0.5, 0.2, 0.2)))
    thrice, _ = criterion()([MatchTask(found, "", repeats=3, weight=0.5)], one_box((0.6, 0.5, 0.2, 0.2)))
    for name, value in once.items():
        torch.testing.assert_close(thrice[name], 0.5 * value)


def test_class_agnostic_tasks_count_every_box_as_class_0():
    logits = torch.tensor([[[3.0, -3.0]]])
    found = one_query()._replace(logits=logits)
    targets = one_box()._replace(classes=torch.tensor([1]))
    agnostic, _ = criterion()([MatchTask(found, "", class_agnostic=True)], targets)
    aware, _ = criterion()([MatchTask(found, "")], targets)
    assert agnostic["loss_class"] < aware["loss_class"]


def test_queries_that_are_not_valid_and_classes_without_labels_have_no_loss():
    logits = torch.randn(1, 4, 3, requires_grad=True)
    boxes = torch.full((1, 4, 4), 0.5)
    valid = torch.tensor([[True, True, False, True]])
    found = BoxSetPrediction(logits, boxes, torch.zeros(1, 4, 4), boxes, valid)
    targets = one_box()._replace(labelled=torch.tensor([[True, False, True]]))
    losses, _ = criterion()([MatchTask(found, "")], targets)
    losses["loss_class"].backward()
    assert (logits.grad[0, 2] == 0).all() and (logits.grad[0, :, 1] == 0).all()
    assert (logits.grad[0, [0, 1, 3]][:, [0, 2]] != 0).all()


def test_error_rates():
    logits = torch.tensor([[[2.0, 1.0], [-1.0, -2.0]]])
    boxes = torch.tensor([[[0.5, 0.5, 0.2, 0.2], [0.1, 0.1, 0.1, 0.1]]])
    found = BoxSetPrediction(logits, boxes, torch.zeros(1, 2, 4), boxes)
    targets = one_box()._replace(classes=torch.tensor([1]))
    _, errors = criterion()([MatchTask(found, "_d0")], targets, with_errors=True)
    assert errors["class_error"] == 100 and errors["cardinality_error"] == 0
    assert errors["box_error"] == pytest.approx(0, abs=1e-3)


def test_generalized_iou_of_boxes_apart_and_of_points():
    a, b = torch.tensor([1.0, 1.0, 2.0, 2.0]), torch.tensor([4.0, 1.0, 2.0, 2.0])
    assert generalized_iou(a, b).item() == pytest.approx(0 - 2 / 10)  # the hull is 5 x 2, 2 of it empty
    point = torch.zeros(4, requires_grad=True)
    value = generalized_iou(point, torch.zeros(4))
    value.backward()
    assert value == 0 and point.grad.isfinite().all()


@pytest.mark.parametrize("class_aware", [False, True])
def test_only_class_aware_proposals_learn_classes(class_aware):
    model = tiny_model(**{"PROPOSALS.CLASS_AWARE": class_aware}).train()
    one, other = (record(64, 64, [[8, 8, 40, 40]], [label]) for label in (0, 2))
    losses = [model([batch])["loss_class_enc"].item() for batch in (one, other)]
    assert (abs(losses[0] - losses[1]) > 1e-4) == class_aware
