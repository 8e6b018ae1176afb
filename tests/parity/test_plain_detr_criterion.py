"""Losses of the released criterion on given predictions, and their gradients."""

import pytest
import torch

from plain_detr.criterion import LossWeights
from plain_detr.hybrid import MatchTask
from plain_detr.predictions import BoxSetPrediction
from tests.parity.golden import cases, load
from tests.parity.plain_detr_parts import check, criterion_for, packed_targets

OUR_PARTS = {"loss_ce": "loss_class", "loss_bbox": "loss_box", "loss_giou": "loss_giou"}


def prediction(leaves: dict, prefix: str) -> BoxSetPrediction:
    boxes = leaves[f"{prefix}pred_boxes"]
    raw, reference = leaves.get(f"{prefix}pred_deltas", boxes), leaves.get(f"{prefix}pred_boxes_old", boxes)
    return BoxSetPrediction(leaves[f"{prefix}pred_logits"], boxes, raw, reference)


@pytest.mark.parametrize("name", cases("plain_detr", "criterion"))
def test_losses_and_gradients_equal_the_released_ones(name):
    case = load("plain_detr", name)
    options, tolerance = case.info["options"], case.info["tolerance"]
    leaves = {key: value.clone().requires_grad_() for key, value in case.group("input.out").items()}
    # Official suffix of every set of predictions -> where it is.
    places = {"": ""} | {f"_{index}": f"aux_outputs.{index}." for index in range(options["num_aux"])}
    tasks = [MatchTask(prediction(leaves, place), suffix) for suffix, place in places.items()]
    if "enc_outputs.pred_logits" in leaves:
        tasks.append(MatchTask(prediction(leaves, "enc_outputs."), "_enc", class_agnostic=True))
    weight = options["weight"]
    criterion = criterion_for(
        options,
        cost=LossWeights(options["cost_class"], options["cost_bbox"], options["cost_giou"]),
        weights=LossWeights(*(weight[part] for part in OUR_PARTS)),
    )
    targets = packed_targets(case, options["batch"])
    losses, _ = criterion(tasks, targets)
    for key, value in case.group("output.loss").items():
        part = "_".join(key.split("_")[:2])
        if part in OUR_PARTS:
            ours = losses[OUR_PARTS[part] + key.removeprefix(part)]
            check(key, ours, value * weight[part], tolerance["losses"])
    total = sum(losses.values())
    check("total", total, case.tensors["output.loss_total"], tolerance["losses"])
    total.backward()
    for key, value in case.group("grad_input.out").items():
        grad = leaves[key].grad
        check(f"d{key}", torch.zeros_like(value) if grad is None else grad, value, tolerance["grad"])
    _, errors = criterion(tasks[:1], targets, with_errors=True)
    assert errors["class_error"] == pytest.approx(float(case.tensors["output.loss.class_error"]), abs=1e-4)
