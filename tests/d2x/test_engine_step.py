"""One training step: accumulation equals a larger batch; transforms change what is back-propagated only."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from d2x.engine.losses.transform import LossTransform
from d2x.engine.step import TrainStep


class Toy(nn.Module):
    """Mean squared output over a batch of numbers."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, batch):
        return {"loss_a": (self.weight * torch.tensor(batch)).square().mean()}


def one_step(batches, **options):
    model = Toy()
    step = TrainStep(model, batches, torch.optim.SGD(model.parameters(), lr=0.1), **options)
    with EventStorage() as storage:
        step.iter = 0
        step.run_step()
    return model.weight.item(), storage.latest()


def test_accumulated_batches_equal_one_large_batch():
    large, _ = one_step([[1.0, 2.0, 3.0, 4.0]])
    small, logged = one_step([[1.0, 2.0], [3.0, 4.0]], accumulate=2)
    assert small == pytest.approx(large)
    assert logged["total_loss"][0] == pytest.approx((1 + 4 + 9 + 16) / 4)


class Doubled(LossTransform):
    def __call__(self, losses):
        return {name: 2 * value for name, value in losses.items()}


def test_transform_scales_the_gradient_but_not_the_log():
    plain, logged = one_step([[1.0]])
    doubled, logged_doubled = one_step([[1.0]], loss_transforms=[Doubled()])
    assert 1 - doubled == pytest.approx(2 * (1 - plain))
    assert logged["total_loss"][0] == logged_doubled["total_loss"][0]


def test_bfloat16_runs_on_the_cpu():
    weight, _ = one_step([[1.0, 2.0]], precision="bfloat16")
    assert weight < 1


@pytest.mark.parametrize("options, message", [({"precision": "int8"}, "PRECISION"), ({"accumulate": 0}, "ACCUMULATE")])
def test_wrong_options_name_their_key(options, message):
    with pytest.raises(ValueError, match=message):
        one_step([[1.0]], **options)


def test_half_precision_on_the_cpu_is_refused():
    with pytest.raises(ValueError, match="use bfloat16 on the CPU"):
        one_step([[1.0]], precision="float16")
