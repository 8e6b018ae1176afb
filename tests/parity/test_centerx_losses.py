"""Heatmap and L1 losses and their gradients against the original's numbers."""

import pytest
import torch

from centerx.heatmap_losses import classes_with_objects, heatmap_focal_loss, heatmap_mse_loss
from centerx.losses import gather_cells, l1_at_centres
from centerx.predictions import SparseHeatmap

from .golden import cases, load

RELEASED_MIN_PROBABILITY = 1e-12


def focal(logits, target):
    return heatmap_focal_loss(logits, target, min_probability=RELEASED_MIN_PROBABILITY)


def focal_ignoring_empty_maps(logits, target):
    mask = classes_with_objects(target)
    return heatmap_focal_loss(logits, target, mask, min_probability=RELEASED_MIN_PROBABILITY)


LOSSES = {
    "modified_focal_loss": focal,
    "ignore_unlabel_focal_loss": focal_ignoring_empty_maps,
    "mse_loss": heatmap_mse_loss,
}


@pytest.mark.parametrize("case", cases("centerx", "focal_losses"))
def test_heatmap_losses(case):
    golden = load("centerx", case)
    target = SparseHeatmap.of(golden.tensors["input.gt"])
    heatmap = golden.tensors["input.pred"]
    slope = heatmap.double() * (1 - heatmap.double())  # of the sigmoid, which float32 knows to a few times 2^-24
    for name, loss in LOSSES.items():
        logits = torch.logit(heatmap.double()).requires_grad_()
        value = loss(logits, target)
        (grad,) = torch.autograd.grad(value, logits)
        if case.endswith("_BUG"):  # the original is nan where a prediction is exactly 1
            assert value.isfinite()
            continue
        torch.testing.assert_close(value, golden.tensors[f"output.{name}"], rtol=1e-5, atol=1e-12)
        known = slope > 0
        expected = golden.tensors[f"grad.{name}.pred"].double()
        allowed = 1e-4 * (expected * slope).abs() + 2**-21 * expected.abs()
        off = ((grad - expected * slope).abs() - allowed)[known]
        assert (off <= 0).all(), f"{name}: {off.max():.3g} more than allowed"


@pytest.mark.parametrize("case", cases("centerx", "reg_l1"))
def test_l1_at_centres(case):
    golden = load("centerx", case)
    tensors = golden.tensors
    for name, norm in (("plain", "none"), ("norm", "image_sum")):
        feature = tensors["input.output"].clone().requires_grad_()
        predicted = gather_cells(feature, tensors["input.index"])
        loss = l1_at_centres(predicted, tensors["input.target"], tensors["input.mask"], norm=norm)
        (grad,) = torch.autograd.grad(loss, feature)
        torch.testing.assert_close(loss, tensors[f"output.loss.{name}"], rtol=1e-5, atol=0)
        torch.testing.assert_close(grad, tensors[f"grad.{name}.output"], rtol=1e-5, atol=1e-8)
