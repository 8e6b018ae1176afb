"""The focal loss as the criterion computes it, against the released function."""

import pytest
import torch

from plain_detr.predictions import BoxSetPrediction, Matches, SetTargets
from plain_detr.set_losses import class_loss
from tests.parity.golden import cases, load
from tests.parity.plain_detr_parts import check


@pytest.mark.parametrize("name", cases("plain_detr", "focal_loss"))
def test_value_and_gradient_equal_the_released_ones(name):
    case = load("plain_detr", name)
    given, tolerance = case.group("input"), case.info["tolerance"]
    image, query, classes = given["targets"].nonzero(as_tuple=True)
    matches = Matches(image, query, torch.arange(len(image)))
    boxes = torch.zeros(len(image), 4)
    targets = SetTargets(boxes, classes, image, image.bincount(minlength=len(given["logits"])).tolist())
    for call, options in case.info["options"]["calls"].items():
        logits = given["logits"].clone().requires_grad_()
        prediction = BoxSetPrediction(logits, *[logits.new_zeros(*logits.shape[:2], 4)] * 3)
        alpha, gamma = options.get("alpha", 0.25), options.get("gamma", 2)
        loss = class_loss(prediction, targets, matches, alpha=alpha, gamma=gamma)
        loss = loss / logits.shape[1] / options["num_boxes"]  # theirs is a mean over queries
        check(call, loss, case.tensors[f"output.loss_{call}"], tolerance["losses"])
        loss.backward()
        check(f"{call} gradient", logits.grad, case.tensors[f"grad_input.logits_{call}"], tolerance["grad"])
