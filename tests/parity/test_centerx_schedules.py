"""Schedules, epochs and weight averaging against the original's numbers."""

import pytest
import torch
from detectron2.engine import TrainerBase
from torch import nn

from d2x.config.keys import get_base_cfg
from d2x.engine.schedules import AveragingCycleLR, WarmupFlatCosineLR, epochs_to_iterations
from d2x.engine.weight_averaging import WeightAveraging

from .golden import cases, load


def flat_cosine(optimizer, options):
    return WarmupFlatCosineLR(
        optimizer,
        max_iters=options["max_iters"],
        flat_iters=options["delay_iters"],
        eta_min=options["eta_min_lr"],
        warmup_iters=options["warmup_iters"],
        warmup_factor=options["warmup_factor"],
        warmup_method=options["warmup_method"],
        rise_after_end=True,
    )


@pytest.mark.parametrize("case", cases("centerx", "lr_schedule"))
def test_lr_schedule(case):
    golden = load("centerx", case)
    options = golden.info["options"]
    parameters = [nn.Parameter(torch.zeros(1)) for _ in options["base_lrs"]]
    optimizer = torch.optim.SGD([{"params": [p], "lr": lr} for p, lr in zip(parameters, options["base_lrs"])], lr=1)
    schedule = flat_cosine(optimizer, options["scheduler"])
    rates = []
    for _ in range(options["iterations"]):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(
        torch.tensor(rates, dtype=torch.float64), golden.tensors["output.lr"], rtol=1e-12, atol=1e-15
    )


@pytest.mark.parametrize("case", cases("centerx", "auto_scale"))
def test_epochs_to_iterations(case):
    golden = load("centerx", case)
    for row, expected in zip(golden.info["options"]["cases"], golden.tensors["output.scaled"]):
        cfg = get_base_cfg()
        cfg.SOLVER.UNIT = "epochs"
        for key in ("IMS_PER_BATCH", "MAX_ITER", "WARMUP_ITERS", "CHECKPOINT_PERIOD"):
            cfg.SOLVER[key] = row[key]
        cfg.SOLVER.STEPS = tuple(row["STEPS"])
        cfg.TEST.EVAL_PERIOD = row["EVAL_PERIOD"]
        cfg.WEIGHT_AVERAGING.START, cfg.WEIGHT_AVERAGING.PERIOD = row["SWA.ITER"], row["SWA.PERIOD"]
        out = epochs_to_iterations(cfg, row["dataset_len"])
        # SWA.ITER counts the epochs after MAX_ITER; ours is the start, in the same unit: the factor is what is shared
        found = [
            out.SOLVER.MAX_ITER,
            out.SOLVER.WARMUP_ITERS,
            out.SOLVER.WARMUP_FACTOR,
            out.WEIGHT_AVERAGING.START,
            out.WEIGHT_AVERAGING.PERIOD,
            out.SOLVER.CHECKPOINT_PERIOD,
            out.TEST.EVAL_PERIOD,
            *out.SOLVER.STEPS,
        ]
        torch.testing.assert_close(torch.tensor(found, dtype=torch.float64), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("case", cases("centerx", "swa"))
def test_stochastic_weight_averaging(case):
    golden = load("centerx", case)
    options = golden.info["options"]
    model = nn.Module()
    model.weight = nn.Parameter(golden.tensors["input.param0"].clone())
    optimizer = torch.optim.SGD([model.weight], lr=options["base_lr"], momentum=options["momentum"])
    schedule = flat_cosine(optimizer, options["scheduler"])
    if options["SWA.LR_SCHED"]:
        schedule = AveragingCycleLR(
            schedule,
            start=options["MAX_ITER"],
            period=options["SWA.PERIOD"],
            lr_start=options["SWA.LR_START"],
            lr_end=options["SWA.ETA_MIN_LR"],
        )
    hook = WeightAveraging(model, mode="swa", start=options["MAX_ITER"], period=options["SWA.PERIOD"])
    trainer = TrainerBase()
    trainer.register_hooks([hook])
    grads = golden.tensors["input.grads"]
    trainer.max_iter = len(grads)
    lr_used, raw, counts, averages = [], [], [], []
    for trainer.iter, grad in enumerate(grads):
        lr_used.append(optimizer.param_groups[0]["lr"])
        model.weight.grad = grad.clone()
        optimizer.step()
        raw.append(model.weight.detach().clone())
        hook.after_step()
        schedule.step()
        counts.append(hook.num_averaged)
        last = trainer.iter + 1 == trainer.max_iter
        average = model.weight if last and hook.num_averaged else hook.averaged.module.weight
        averages.append(average.detach().clone() if hook.num_averaged else torch.full_like(grad, float("nan")))
    close = {"rtol": 1e-6, "atol": 1e-7, "equal_nan": True}
    torch.testing.assert_close(
        torch.tensor(lr_used, dtype=torch.float64), golden.tensors["output.lr_used"], rtol=1e-10, atol=0
    )
    torch.testing.assert_close(torch.stack(raw), golden.tensors["output.param_after_step"], **close)
    assert counts == golden.tensors["output.n_avg_after_step"].tolist()
    torch.testing.assert_close(torch.stack(averages), golden.tensors["output.swa_average_after_step"], **close)
    torch.testing.assert_close(model.weight.detach(), golden.tensors["output.final_param"], **close)
    if hook.num_averaged:  # a run too short for one average ends with its raw weights, and the original has no buffer
        left = hook.averaged.module.weight.detach()
        torch.testing.assert_close(left, golden.tensors["output.final_swa_buffer"], **close)
