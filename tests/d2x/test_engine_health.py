"""Steps that are not finite leave no trace, are reported, and end training when they go on; losses that collapse."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import nn

from d2x.checkpoint.files import Checkpointer
from d2x.engine.health.divergence import LossCollapse
from d2x.engine.health.step_guard import StepGuard, TrainingDiverged
from d2x.engine.step import TrainStep


class Toy(nn.Module):
    """Batch norm, a weight, and two losses; a record's ``x`` decides what is not finite."""

    def __init__(self):
        super().__init__()
        self.norm, self.weight = nn.BatchNorm1d(1), nn.Parameter(torch.ones(1))

    def forward(self, batch):
        x = torch.stack([record["x"] for record in batch])[:, None]
        y = self.norm(x) * self.weight
        return {
            "loss_a": y.square().mean(),
            "loss_b": torch.stack([record["b"] for record in batch]).mean() + 0 * y.sum(),
        }


def record(name, x=1.0, b=0.5):
    return {"file_name": name, "x": torch.tensor(x), "b": torch.tensor(b), "meta": object()}


GOOD = [record("a.jpg"), record("b.jpg", 2.0)]
BAD_LOSS = [record("c.jpg"), record("d.jpg", b=math.nan)]
BAD_IMAGE = [record("e.jpg", math.inf), record("f.jpg")]


def run(batches, tmp_path, *, max_in_a_row=10, accumulate=1):
    """Train on all batches; returns the step with its model."""
    model = Toy()
    guard = StepGuard(
        model, max_in_a_row=max_in_a_row, checkpointer=Checkpointer(model, str(tmp_path)), config="SEED: 1\n"
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    step = TrainStep(model, batches, optimizer, guard=guard, accumulate=accumulate)
    with EventStorage() as step.storage:
        for step.iter in range(len(batches) // accumulate):
            step.storage.iter = step.iter
            step.run_step()
    return step


def state(step):
    return [value.tolist() for value in step.model.state_dict().values()]


@pytest.mark.parametrize("bad", [BAD_LOSS, BAD_IMAGE])
def test_a_bad_batch_leaves_no_trace(bad, tmp_path):
    step = run([GOOD, bad, GOOD, bad, GOOD], tmp_path)
    assert state(step) == state(run([GOOD, GOOD, GOOD], tmp_path)), "weights and batch-norm statistics"
    assert (step.guard.skipped, step.guard.in_a_row) == (2, 0)
    assert step.storage.latest()["health/skipped_steps"] == (2, 3)


def test_one_bad_batch_of_those_accumulated_skips_the_step(tmp_path):
    step = run([GOOD, GOOD, GOOD, BAD_LOSS], tmp_path, accumulate=2)
    assert state(step) == state(run([GOOD, GOOD], tmp_path, accumulate=2))


def test_the_log_names_loss_and_images(tmp_path, caplog):
    run([GOOD, BAD_LOSS], tmp_path)
    (message,) = [record.getMessage() for record in caplog.records if "step skipped" in record.getMessage()]
    assert message == "iteration 1: loss_b is nan: step skipped (1 in a row, 1 in all); images: c.jpg, d.jpg"


class InfiniteGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, grad):
        return grad * math.inf


class FineLossBadGradient(Toy):
    def forward(self, batch):
        return {"loss_a": InfiniteGradient.apply(self.weight).square().mean()}


def test_a_gradient_that_is_not_finite_is_named(tmp_path, caplog):
    model = FineLossBadGradient()
    step = TrainStep(model, [GOOD], torch.optim.SGD(model.parameters(), lr=0.1), guard=StepGuard(model))
    with EventStorage() as step.storage:
        step.iter = 0
        step.run_step()
    assert model.weight.item() == 1
    assert "the gradient of weight is not finite" in caplog.text and "a.jpg, b.jpg" in caplog.text


def test_training_ends_after_many_in_a_row_with_everything_saved(tmp_path):
    with pytest.raises(TrainingDiverged, match=r"3 steps in a row .*iteration 4: loss_b is nan.*iteration_0000004"):
        run([GOOD, GOOD, BAD_LOSS, BAD_LOSS, BAD_LOSS, GOOD], tmp_path, max_in_a_row=3)
    folder = tmp_path / "diagnostics" / "iteration_0000004"
    ((one, two),) = torch.load(folder / "batch_rank0.pt", weights_only=True)
    assert (one["file_name"], two["file_name"]) == ("c.jpg", "d.jpg") and two["b"].isnan()
    assert (folder / "config.yaml").read_text() == "SEED: 1\n"
    report = json.loads((folder / "report.json").read_text())
    assert report["weights"] == str(folder / "weights.pth")
    assert report["processes"][0]["reason"] == "loss_b is nan"
    weights = torch.load(report["weights"], weights_only=True)["model"]
    assert all(value.isfinite().all() for value in weights.values())


def test_the_count_in_a_row_survives_resuming(tmp_path):
    step = run([BAD_LOSS, BAD_LOSS], tmp_path)
    again = run([GOOD], tmp_path)
    again.load_state_dict(step.state_dict())
    assert (again.guard.skipped, again.guard.in_a_row) == (2, 2)


def collapse(values, state=None, **options):
    """Feed one dict of losses a step; returns the hook."""
    hook = LossCollapse(**{"window": 3, "factor": 4.0, **options})
    if state is not None:
        hook.load_state_dict(state)
    with EventStorage() as storage:
        hook.trainer = SimpleNamespace(storage=storage)
        for iteration, losses in enumerate(values):
            hook.trainer.iter = storage.iter = iteration
            storage.put_scalars(total_loss=sum(losses.values()), **losses)
            hook.after_step()
    return hook


def steps(*totals, **parts):
    return [{"loss_a": total, **parts} for total in totals]


def test_a_loss_that_blows_up_for_good_is_reported_once(caplog):
    collapse(steps(2, 1, 1, 9, 9, 9, 9, 9, 9))  # medians 1, 9, 9
    assert caplog.text.count("the loss has collapsed: median 9 over 3 steps, 1 before") == 1


def test_single_bad_batches_are_no_collapse(caplog):
    collapse(steps(1, 1, 1, 90, 1, 1, 1, 90, 1))
    assert "collapsed" not in caplog.text


def test_a_part_that_vanishes_is_named(caplog):
    collapse([*steps(1, 1, 1, loss_b=0.5), *steps(1, 1, 1, loss_b=0.0)])
    assert "loss_b has vanished" in caplog.text


def test_a_part_that_was_never_there_is_not_reported(caplog):
    collapse(steps(*[1] * 9, loss_b=0.0))
    assert "vanished" not in caplog.text


def test_a_collapse_can_end_training():
    with pytest.raises(TrainingDiverged, match="iteration 5: the loss has collapsed"):
        collapse(steps(1, 1, 1, 9, 9, 9), action="stop")


def test_the_detector_goes_on_after_resuming(caplog):
    first = collapse(steps(1, 1, 1, 9))
    with EventStorage() as storage:
        second = LossCollapse(window=3, factor=4.0)
        second.load_state_dict(first.state_dict())
        second.trainer = SimpleNamespace(storage=storage)
        for second.trainer.iter in (4, 5):
            storage.iter = second.trainer.iter
            storage.put_scalars(total_loss=9, loss_a=9)
            second.after_step()
    assert "median 9 over 3 steps, 1 before" in caplog.text


@pytest.mark.parametrize("options", [{"window": 0}, {"factor": 1.0}, {"action": "cry"}])
def test_wrong_options_name_their_keys(options):
    with pytest.raises(ValueError, match="HEALTH.COLLAPSE"):
        LossCollapse(**{"window": 3, "factor": 4.0, **options})
