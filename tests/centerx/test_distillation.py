"""Distillation terms worked out by hand; maps of other strides."""

import pytest
import torch

from centerx.distill.terms import DistillationLoss, Route, align_to_grid, heatmap_term, regression_term
from centerx.predictions import CenterPredictions


def logit(p: float) -> float:
    return torch.logit(torch.tensor(p)).item()


def predictions(heatmap, size, offset=None) -> CenterPredictions:
    return CenterPredictions(heatmap, size, offset)


def test_released_terms_of_one_peak():
    # teacher: 0.5 in one of 4 x 5 cells, 0.1 elsewhere would be peaks too, so the rest is far below
    teacher_heat = torch.full((1, 1, 4, 5), -100.0)
    teacher_heat[0, 0, 1, 2] = 0.0  # sigmoid 0.5
    student_heat = torch.full((1, 1, 4, 5), -100.0)
    teacher = predictions(teacher_heat, torch.full((1, 2, 4, 5), 3.0), torch.full((1, 2, 4, 5), 0.5))
    student = predictions(student_heat, torch.full((1, 2, 4, 5), 1.0), torch.full((1, 2, 4, 5), 0.25))
    loss = DistillationLoss(heatmap_weight=20.0, size_weight=1.0, offset_weight=2.0)
    terms = loss(student, teacher, Route((0,), (0,), (1.0,)))
    assert terms["cls"].item() == pytest.approx(20 * 0.25 / 20)  # (0.5)^2 over 20 cells
    assert terms["wh"].item() == pytest.approx((2 + 2) * 0.5 / (0.5 + 1e-4))
    assert terms["off"].item() == pytest.approx(2 * (0.25 + 0.25) * 0.5 / (0.5 + 1e-4))
    normed = DistillationLoss(norm_size=True)(student, teacher, Route((0,), (0,), (1.0,)))
    assert normed["wh"].item() == pytest.approx(4 / (3 + 1e-4) * 0.5 / (0.5 + 1e-4), rel=1e-5)


def test_article_terms():
    # logits: teacher (2, 1, -1), student (1, -5, -9); after ReLU (2, 1, 0) and (1, 0, 0)
    teacher = predictions(torch.tensor([2.0, 1.0, -1.0]).view(1, 1, 1, 3), torch.zeros(1, 2, 1, 3))
    student = predictions(torch.tensor([1.0, -5.0, -9.0]).view(1, 1, 1, 3), torch.ones(1, 2, 1, 3))
    terms = DistillationLoss(definition="article", heatmap_weight=3.0)(student, teacher, Route((0,), (0,), (1.0,)))
    assert terms["cls"].item() == pytest.approx(3 * (1 + 1) / 3)
    assert terms["wh"].item() == pytest.approx(2 * (2 + 1) / (3 + 1e-4))  # every cell, weighted by 2, 1, 0
    assert "off" not in terms


def test_only_routed_channels_are_taught_and_the_teacher_gets_no_gradient():
    student = predictions(torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 2, 4, 4, requires_grad=True))
    teacher = predictions(torch.randn(2, 2, 4, 4), torch.randn(2, 2, 4, 4))
    DistillationLoss()(student, teacher, Route((1,), (2,), (1.0,)))["cls"].backward()
    touched = student.heatmap_logits.grad.abs().sum((0, 2, 3)) > 0
    assert touched.tolist() == [False, False, True]


def test_shares_scale_a_class_down():
    student, teacher = torch.zeros(1, 2, 1, 1), torch.ones(1, 2, 1, 1)
    assert heatmap_term(student, teacher).item() == 1
    assert heatmap_term(student, teacher, torch.tensor([1.0, 0.5])).item() == 0.75


def test_sizes_per_class_are_compared_at_their_own_peaks():
    mask = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).view(1, 2, 1, 2)  # class 0 in the first cell, 1 in the second
    student = torch.zeros(1, 2, 2, 1, 2)
    teacher = torch.arange(8.0).view(1, 2, 2, 1, 2)
    # class 0, cell 0: (w, h) = (0, 2); class 1, cell 1: (5, 7)
    assert regression_term(student, teacher, mask).item() == pytest.approx((0 + 2 + 5 + 7) / (2 + 1e-4))


def test_teacher_with_sizes_per_class_teaches_shared_sizes_by_its_best_class():
    heat = torch.tensor([[0.0, -100.0], [-100.0, 0.0]]).view(1, 2, 1, 2)
    teacher = predictions(heat, torch.arange(8.0).view(1, 4, 1, 2))
    student = predictions(torch.zeros(1, 2, 1, 2), torch.zeros(1, 2, 1, 2))
    terms = DistillationLoss()(student, teacher, Route((0, 1), (0, 1), (1.0, 1.0)))
    assert terms["wh"].item() == pytest.approx(0.5 * (0 + 2 + 5 + 7) / (1 + 1e-4))


def test_student_with_one_class_and_shared_teacher():
    teacher = predictions(torch.zeros(1, 1, 2, 2), torch.ones(1, 2, 2, 2))
    student = predictions(torch.zeros(1, 2, 2, 2), torch.zeros(1, 4, 2, 2))
    terms = DistillationLoss()(student, teacher, Route((0,), (1,), (1.0,)))
    assert terms["wh"].item() == pytest.approx(2 * 4 * 0.5 / (4 * 0.5 + 1e-4))


def test_coarser_teacher_is_resampled():
    # one cell of stride 8 with its centre at (0.75, 0.25) of the cell: pixel (6, 2), stride-4 cell (1, 0), (0.5, 0.5)
    maps = predictions(
        torch.full((1, 1, 1, 1), 2.0), torch.full((1, 2, 1, 1), 3.0), torch.tensor([0.75, 0.25]).view(1, 2, 1, 1)
    )
    fine = align_to_grid(maps, teacher_stride=8, student_stride=4, grid_hw=(2, 2))
    assert torch.equal(fine.heatmap_logits, torch.full((1, 1, 2, 2), 2.0))
    assert torch.equal(fine.size, torch.full((1, 2, 2, 2), 6.0))
    assert fine.offset[0, :, 0, 1].tolist() == [0.5, 0.5]
    assert fine.offset[0, :, 0, 0].tolist() == [1.0, 0.5]  # limited to its own cell


def test_padding_of_the_teacher_is_cut_off():
    maps = predictions(torch.randn(1, 1, 4, 6), torch.randn(1, 2, 4, 6))
    cut = align_to_grid(maps, teacher_stride=4, student_stride=4, grid_hw=(3, 5))
    assert torch.equal(cut.size, maps.size[..., :3, :5])
    with pytest.raises(ValueError, match=r"do not cover the student's grid \(5, 6\)"):
        align_to_grid(maps, teacher_stride=4, student_stride=4, grid_hw=(5, 6))


def test_smallest_divisor_of_the_size_normalisation():
    teacher = predictions(torch.zeros(1, 1, 1, 1), torch.full((1, 2, 1, 1), -1e-4))
    student = predictions(torch.zeros(1, 1, 1, 1), torch.ones(1, 2, 1, 1))
    route = Route((0,), (0,), (1.0,))
    assert not DistillationLoss(norm_size=True)(student, teacher, route)["wh"].abs() < 1e4
    assert DistillationLoss(norm_size=True, min_size=1.0)(student, teacher, route)["wh"].item() == pytest.approx(
        2 * 0.5 / (0.5 + 1e-4), rel=1e-3
    )


def test_unknown_definition():
    with pytest.raises(ValueError, match="DISTILL.DEFINITION 'paper' is not one of released, article"):
        DistillationLoss(definition="paper")
