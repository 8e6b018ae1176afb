"""Loss values worked out by hand, masks, and gradients that stay finite."""

import math

import pytest
import torch
from torch.nn import functional as F

from centerx import heatmap_losses
from centerx.heatmap_losses import heatmap_focal_loss, heatmap_mse_loss, quality_focal_loss
from centerx.losses import CenterLoss, gather_cells, giou_at_centres, l1_at_centres
from centerx.predictions import CenterPredictions, SparseHeatmap
from centerx.targets import make_targets


def test_focal_loss_of_one_positive_and_one_negative():
    logits = torch.zeros(1, 1, 1, 2)  # probability 1/2 everywhere
    target = torch.tensor([[[[1.0, 0.5]]]])
    # positive: -log(1/2) / 4; negative: (1 - 1/2)^4 * -log(1/2) / 4; one positive
    expected = math.log(2) / 4 * (1 + 1 / 16)
    assert heatmap_focal_loss(logits, SparseHeatmap.of(target)).item() == pytest.approx(expected)


def test_focal_loss_without_positives_is_not_divided():
    logits, target = torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)
    assert heatmap_focal_loss(logits, SparseHeatmap.of(target)).item() == pytest.approx(4 * math.log(2) / 4)


@pytest.mark.parametrize("loss", [heatmap_focal_loss, quality_focal_loss, heatmap_mse_loss])
def test_heatmap_losses_and_gradients_are_finite_for_certain_predictions(loss):
    logits = torch.tensor([[[[200.0, -200.0], [200.0, -200.0]]]], requires_grad=True)
    target = torch.tensor([[[[1.0, 1.0], [0.0, 0.0]]]])
    value = loss(logits, SparseHeatmap.of(target))
    value.backward()
    assert value.isfinite() and logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", [heatmap_focal_loss, quality_focal_loss, heatmap_mse_loss])
def test_masked_class_gets_no_gradient_and_does_not_count(loss):
    torch.manual_seed(0)
    logits = torch.randn(2, 2, 3, 3, requires_grad=True)
    target = torch.zeros(2, 2, 3, 3)
    target[:, :, 1, 1] = 1
    target = SparseHeatmap.of(target)
    mask = torch.tensor([[True, False], [True, True]])
    value = loss(logits, target, mask)
    value.backward()
    assert logits.grad[0, 1].abs().sum() == 0 and logits.grad[0, 0].abs().sum() > 0
    changed = logits.detach().clone()
    changed[0, 1] += 5
    torch.testing.assert_close(loss(changed, target, mask), value.detach())


def test_quality_focal_loss_is_zero_at_the_soft_target():
    target = torch.tensor([[[[1.0, 0.3]]]])
    logits = torch.logit(target, eps=1e-7)
    assert quality_focal_loss(logits, SparseHeatmap.of(target)).item() == pytest.approx(0.0, abs=1e-6)


def dense_focal(logits, target):
    positive = target == 1
    found = F.logsigmoid(logits) * torch.sigmoid(-logits) ** 2
    rejected = F.logsigmoid(-logits) * torch.sigmoid(logits) ** 2 * (1 - target) ** 4
    return -torch.where(positive, found, rejected).sum() / positive.sum()


def dense_quality_focal(logits, target):
    entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (entropy * (target - logits.sigmoid()) ** 2).sum() / (target == 1).sum()


@pytest.mark.parametrize("maps_together", [1, 4, 100])
@pytest.mark.parametrize(
    ("sparse", "dense"),
    [
        (heatmap_focal_loss, dense_focal),
        (quality_focal_loss, dense_quality_focal),
        (heatmap_mse_loss, lambda logits, target: F.mse_loss(logits.sigmoid(), target)),
    ],
)
def test_sparse_targets_give_the_loss_and_gradient_of_dense_ones(sparse, dense, maps_together, monkeypatch):
    monkeypatch.setattr(heatmap_losses, "BLOCK_CELLS_CPU", maps_together * 4 * 8)
    torch.manual_seed(0)
    boxes = [torch.tensor([[4.0, 4.0, 12.0, 12.0], [6.0, 2.0, 30.0, 14.0]]), torch.tensor([[0.0, 0.0, 32.0, 9.0]])]
    targets = make_targets(
        boxes, [torch.tensor([2, 2]), torch.tensor([0])], num_classes=3, stride=4, grid_hw=(4, 8), min_overlap=0.3
    )
    logits = 3 * torch.randn(2, 3, 4, 8)
    values, gradients = [], []
    for loss, target in ((sparse, targets.heatmap), (dense, targets.heatmap.dense())):
        leaf = logits.clone().requires_grad_()
        value = loss(leaf, target)
        (7 * value).backward()
        values.append(value.detach())
        gradients.append(leaf.grad)
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)
    with torch.no_grad():
        torch.testing.assert_close(sparse(logits, targets.heatmap), values[0])


def test_gather_cells_reads_a_class_own_pair():
    feature = torch.arange(2 * 4 * 6.0).view(2, 4, 2, 3)  # K = 2, Hf x Wf = 2 x 3
    cell, classes = torch.tensor([[5], [1]]), torch.tensor([[1], [0]])
    found = gather_cells(feature, cell, classes)
    assert found.tolist() == [[[2 * 6 + 5, 3 * 6 + 5]], [[24 + 1, 24 + 6 + 1]]]
    shared = gather_cells(feature[:, :2], cell, classes)
    assert shared.tolist() == [[[5, 6 + 5]], [[24 + 1, 24 + 6 + 1]]]


def test_l1_norms():
    predicted, target = torch.tensor([[[3.0, 5.0], [9.0, 9.0]]]), torch.tensor([[[2.0, 4.0], [6.0, 8.0]]])
    valid = torch.tensor([[True, False]])
    assert l1_at_centres(predicted, target, valid).item() == pytest.approx((1 + 1) / 2.0001)
    # over the object's mean side, 3
    assert l1_at_centres(predicted, target, valid, norm="object").item() == pytest.approx(2 / 3 / 2, rel=1e-3)
    # released: over half the sum of the image's widths, 4, and heights, 6
    expected = (1 / 4 + 1 / 6) / 2
    assert l1_at_centres(predicted, target, valid, norm="image_sum").item() == pytest.approx(expected, rel=1e-3)


def targets_of(boxes, classes, grid=(4, 8)):
    return make_targets(boxes, classes, num_classes=2, stride=4, grid_hw=grid, min_overlap=0.7)


def test_giou_of_a_shifted_box():
    targets = targets_of([torch.tensor([[4.0, 4.0, 12.0, 12.0]])], [torch.tensor([0])])  # centre (2, 2), side 2 cells
    exact = giou_at_centres(torch.full((1, 1, 2), 2.0), torch.zeros(1, 1, 2), targets)
    assert exact.item() == pytest.approx(0.0, abs=1e-5)
    # centre one cell to the right: overlap 1 x 2 of a union 3 x 2, which is its own hull
    shifted = giou_at_centres(torch.full((1, 1, 2), 2.0), torch.tensor([[[1.0, 0.0]]]), targets)
    assert shifted.item() == pytest.approx(1 - 1 / 3, abs=1e-5)


def test_giou_makes_sizes_below_zero_grow():
    targets = targets_of([torch.tensor([[4.0, 4.0, 12.0, 12.0]])], [torch.tensor([0])])  # side 2 cells
    size = torch.tensor([[[-3.0, -0.5]]], requires_grad=True)
    loss = giou_at_centres(size, torch.zeros(1, 1, 2), targets)
    assert loss.item() == pytest.approx(1 - 0.01, abs=1e-5)  # a tenth of each side
    loss.backward()
    assert (size.grad < -0.01).all()


@pytest.mark.parametrize("size", ["l1", "giou"])
@pytest.mark.parametrize("heatmap", ["focal", "quality_focal", "mse"])
def test_every_combination_trains_also_without_objects(size, heatmap):
    torch.manual_seed(0)
    none = torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64)
    some = torch.tensor([[4.0, 4.0, 12.0, 12.0]]), torch.tensor([1])
    loss = CenterLoss(size=size, heatmap=heatmap)
    for images in ([none, none], [some, none]):
        maps = [torch.randn(2, channels, 4, 8, requires_grad=True) for channels in (2, 2, 2)]
        found = loss(CenterPredictions(*maps), targets_of(*map(list, zip(*images))))
        assert list(found) == ["loss_cls", "loss_box_wh", "loss_off_reg"]
        sum(found.values()).backward()
        assert all(value.isfinite() for value in found.values())
        assert all(one.grad is None or one.grad.isfinite().all() for one in maps)


def test_wrong_option_is_named():
    with pytest.raises(ValueError, match="LOSS.SIZE 'iou' is not one of l1, giou"):
        CenterLoss(size="iou")


def test_unlabelled_rules_differ():
    # class 1 has no object and the image is not labelled for it
    targets = make_targets(
        [torch.tensor([[4.0, 4.0, 12.0, 12.0]])],
        [torch.tensor([0])],
        num_classes=3,
        stride=4,
        grid_hw=(4, 4),
        min_overlap=0.7,
        labelled_classes=[torch.tensor([0, 2])],
    )
    gradients = {}
    for rule in ("labelled_classes", "empty_heatmap", "none"):
        logits = torch.zeros(1, 3, 4, 4, requires_grad=True)
        maps = CenterPredictions(logits, torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4))
        CenterLoss(unlabelled=rule)(maps, targets)["loss_cls"].backward()
        gradients[rule] = (logits.grad.abs().sum((0, 2, 3)) > 0).tolist()
    assert gradients == {
        "labelled_classes": [True, False, True],
        "empty_heatmap": [True, False, False],
        "none": [True, True, True],
    }
