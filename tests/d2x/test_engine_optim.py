"""Optimizers, schedules, averaging."""

import math

import pytest
import torch
from torch import nn

from d2x.config.keys import add_d2x_config
from d2x.engine.optim import build_optimizer, with_whole_model_clipping
from d2x.engine.schedules import WarmupFlatCosineLR
from d2x.engine.weight_averaging import WeightAveraging


def small_cfg():
    from detectron2.config import get_cfg

    cfg = get_cfg()
    add_d2x_config(cfg)
    return cfg


def test_whole_model_clipping_scales_all_gradients_by_one_factor():
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = with_whole_model_clipping(torch.optim.SGD, max_norm=1.0, norm_type=2.0)([first, second], lr=1.0)
    first.grad, second.grad = torch.tensor([3.0]), torch.tensor([4.0])  # norm 5 -> both divided by 5
    optimizer.step()
    torch.testing.assert_close(torch.cat([first, second]).detach(), torch.tensor([-0.6, -0.8]))


def test_optimizer_keeps_each_groups_rate_and_decay():
    cfg = small_cfg()
    cfg.SOLVER.OPTIMIZER = "AdamW"
    a, b = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = build_optimizer(
        cfg, [{"params": [a], "lr": 0.1, "weight_decay": 0.0}, {"params": [b], "lr": 0.2, "weight_decay": 0.5}]
    )
    found = {id(g["params"][0]): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups}
    assert found == {id(a): (0.1, 0.0), id(b): (0.2, 0.5)}


def test_unknown_optimizer_names_the_key_and_the_choices():
    cfg = small_cfg()
    cfg.SOLVER.OPTIMIZER = "Lion"
    with pytest.raises(ValueError, match="SOLVER.OPTIMIZER 'Lion' is not one of SGD, Adam, AdamW"):
        build_optimizer(cfg, [{"params": [nn.Parameter(torch.zeros(1))]}])


def test_flat_cosine_ends_at_its_minimum_and_stays():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = WarmupFlatCosineLR(optimizer, max_iters=10, flat_iters=4, eta_min=0.1, warmup_iters=2, warmup_factor=0.5)
    rates = []
    for _ in range(14):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:5] == pytest.approx([0.5, 0.75, 1, 1, 1])
    assert rates[7] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2)  # half way from 4 to 10
    assert rates[10:] == pytest.approx([0.1] * 4)


def test_schedule_refuses_a_warm_up_longer_than_the_flat_part():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    with pytest.raises(ValueError, match="warmup"):
        WarmupFlatCosineLR(optimizer, max_iters=10, flat_iters=1, warmup_iters=2)


class _Run:
    """The two numbers a hook reads from a trainer."""

    def __init__(self, max_iter):
        self.iter, self.max_iter = 0, max_iter


def _drive(hook, model, values, max_iter):
    hook.trainer = _Run(max_iter)
    for hook.trainer.iter, value in enumerate(values):
        with torch.no_grad():
            model.weight.fill_(value)
        hook.after_step()


def test_ema_follows_its_recursion():
    model = nn.Linear(1, 1, bias=False)
    hook = WeightAveraging(model, mode="ema", decay=0.5, ramp=False)
    _drive(hook, model, [1.0, 2.0, 4.0], max_iter=100)
    assert hook.averaged.module.weight.item() == pytest.approx(2.75)  # 1 -> 1.5 -> (1.5 + 4) / 2


def test_average_is_in_the_model_during_evaluation_and_after_the_last_step():
    model = nn.Linear(1, 1, bias=False)
    hook = WeightAveraging(model, mode="swa")
    _drive(hook, model, [1.0, 3.0], max_iter=3)
    with hook.applied():
        assert model.weight.item() == pytest.approx(2.0)
    assert model.weight.item() == 3.0
    hook.trainer.iter = 2
    with torch.no_grad():
        model.weight.fill_(5.0)
    hook.after_step()
    assert model.weight.item() == pytest.approx(3.0)  # mean of 1, 3, 5


@pytest.mark.parametrize("mode", ["ema", "swa"])
@pytest.mark.parametrize("schedule", [{"start": 4}, {"start": 2, "period": 3}], ids=["start not reached", "no period"])
def test_a_run_too_short_for_an_average_ends_with_its_raw_weights(mode, schedule, caplog):
    model = nn.Linear(1, 1, bias=False)
    hook = WeightAveraging(model, mode=mode, **schedule)
    _drive(hook, model, [1.0, 3.0, 5.0], max_iter=4)
    with hook.applied():
        assert model.weight.item() == 5.0  # evaluation in between sees the raw weights too
    assert "no average" not in caplog.text
    _drive(hook, model, [1.0, 3.0, 5.0, 7.0], max_iter=4)
    assert hook.num_averaged == 0
    assert model.weight.item() == 7.0
    assert "WEIGHT_AVERAGING took no average in 4 iterations" in caplog.text


def test_averaging_state_round_trips():
    model = nn.Linear(1, 1, bias=False)
    hook = WeightAveraging(model, mode="swa")
    _drive(hook, model, [1.0, 3.0], max_iter=10)
    other = WeightAveraging(nn.Linear(1, 1, bias=False), mode="swa")
    other.load_state_dict(hook.state_dict())
    assert other.num_averaged == 2
    assert other.averaged.module.weight.item() == pytest.approx(2.0)
