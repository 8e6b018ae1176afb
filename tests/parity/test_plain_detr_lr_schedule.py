"""The released learning-rate schedule is detectron2's with a warm-up from 0 and a drop one iteration later."""

from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg

import plain_detr  # noqa: F401
from d2x.config.keys import add_d2x_config
from d2x.config.load import load_cfg
from d2x.engine.schedules import build_lr_scheduler
from tests.parity.golden import cases, load

RELEASED = Path(__file__).resolve().parents[2] / "projects" / "PlainDETR" / "configs" / "released"
EPOCH = 7329  # iterations, in our configs


@pytest.mark.parametrize("case", cases("plain_detr", "lr_schedule"))
def test_multiplier_at_every_listed_iteration(case):
    info = load("plain_detr", case).info
    options, expected = info["options"], dict(info["multiplier"])
    cfg = get_cfg()
    add_d2x_config(cfg)
    cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.WARMUP_FACTOR = options["warmup"], 0.0
    cfg.SOLVER.STEPS = (options["lr_drop"] * options["iterations_per_epoch"] + 1,)
    cfg.SOLVER.MAX_ITER = max(*cfg.SOLVER.STEPS, *expected) + 1
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    optimizer.step()
    scheduler, ours = build_lr_scheduler(cfg, optimizer), {}
    for iteration in range(max(expected) + 1):
        if iteration in expected:
            ours[iteration] = optimizer.param_groups[0]["lr"]
        scheduler.step()
    assert ours == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("path", sorted(RELEASED.glob("*.yaml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("case", cases("plain_detr", "lr_schedule"))
def test_released_configs_have_it(case, path):
    options = load("plain_detr", case).info["options"]
    if options != {"iterations_per_epoch": EPOCH, "warmup": 1000, "lr_drop": 11}:
        pytest.skip("not the released models' schedule")
    solver = load_cfg(str(path)).SOLVER
    assert (solver.WARMUP_ITERS, solver.WARMUP_FACTOR, solver.WARMUP_METHOD) == (1000, 0.0, "linear")
    assert (list(solver.STEPS), solver.GAMMA) == ([11 * EPOCH + 1], 0.1)
