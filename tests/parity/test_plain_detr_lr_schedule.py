"""The released learning-rate schedule, as a function and as the optimizer sees it."""

import pytest
import torch

from plain_detr.schedule import released_multiplier
from tests.parity.golden import cases, load


def multiplier(options: dict, iteration: int) -> float:
    drop_at = options["lr_drop"] * options["iterations_per_epoch"]
    return released_multiplier(iteration, warmup=options["warmup"], drop_at=drop_at)


@pytest.mark.parametrize("case", cases("plain_detr", "lr_schedule"))
def test_multiplier_at_every_listed_iteration(case):
    info = load("plain_detr", case).info
    ours = [[iteration, multiplier(info["options"], iteration)] for iteration, _ in info["multiplier"]]
    assert [[i, pytest.approx(value, rel=1e-12)] for i, value in info["multiplier"]] == ours


@pytest.mark.parametrize("case", cases("plain_detr", "lr_schedule"))
def test_a_scheduler_stepped_every_iteration_gives_the_first_rates(case):
    info = load("plain_detr", case).info
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: multiplier(info["options"], i))
    expected = {iteration: value for iteration, value in info["multiplier"] if iteration <= 1001}
    for iteration in range(max(expected) + 1):
        if iteration in expected:
            assert optimizer.param_groups[0]["lr"] == pytest.approx(2.0 * expected[iteration])
        optimizer.step()
        schedule.step()
