"""The adaptive loss and the loss guard: weights, bad losses, accumulation, DDP, checkpoints."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.config import get_cfg
from detectron2.utils.events import EventStorage
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from d2x.config.keys import add_d2x_config
from d2x.engine.losses.adaptive_loss import AdaptiveLoss
from d2x.engine.losses.build import build_loss_transforms
from d2x.engine.losses.loss_guard import LossGuard
from d2x.engine.step import TrainStep


class TwoHeads(nn.Module):
    """Its losses are the two weights times what the batch says."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.ones(1)), nn.Parameter(torch.ones(1))

    def forward(self, batch):
        (factors,) = batch
        return {"loss_cls": (self.first * factors[0]).sum(), "loss_box": (self.second * factors[1]).sum()}


def make_step(batches, transforms, **kwargs):
    model = TwoHeads()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    step = TrainStep(model, [[b] for b in batches], optimizer, loss_transforms=transforms(model), **kwargs)
    return step, model


def run(step, count=1):
    with EventStorage() as storage:
        for step.iter in range(count):
            step.run_step()
        return storage


def adaptive(**kwargs):
    return lambda model: [
        AdaptiveLoss(targets=[("*cls*", 2.0), ("*box*", 0.5)], parameters=model.parameters(), **kwargs)
    ]


def test_every_loss_is_worth_its_target_and_gradients_follow():
    losses = {"loss_cls": torch.tensor(4.0, requires_grad=True), "other": torch.tensor(3.0, requires_grad=True)}
    out = AdaptiveLoss(targets=[("*cls*", 1.0), ("*", 9.0)])(losses)
    sum(out.values()).backward()
    assert [value.item() for value in out.values()] == pytest.approx([1.0, 9.0])
    assert losses["loss_cls"].grad.item() == 0.25 and losses["other"].grad.item() == 3


def test_first_matching_pattern_counts_and_the_rest_is_unchanged():
    loss = AdaptiveLoss(targets=[("loss_ce*", 1.0), ("*_d0", 2.0)])
    assert loss.target_of("loss_ce_d0") == 1.0 and loss.target_of("loss_bbox_d0") == 2.0
    other = torch.tensor(7.0)
    assert loss({"loss_ce": torch.tensor(5.0), "loss_bbox": other})["loss_bbox"] is other


def test_no_match_names_patterns_and_losses():
    with pytest.raises(ValueError, match=r"ADAPTIVE_LOSS.TARGETS \(\*hm\*\) match none of the losses loss_cls"):
        AdaptiveLoss(targets=[("*hm*", 1.0)])({"loss_cls": torch.tensor(1.0)})


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_targets_must_be_positive(value):
    with pytest.raises(ValueError, match="the target of 'a' must be positive"):
        AdaptiveLoss(targets=[("a", value)])


def test_weight_limit():
    loss = AdaptiveLoss(targets=[("*", 1.0)], max_weight=10.0)
    loss({"a": torch.tensor(0.001), "b": torch.tensor(0.5)})
    assert loss.weights == {"a": 10.0, "b": 2.0}


@pytest.mark.parametrize("bad", [0.0, math.nan, math.inf])
def test_bad_loss_is_left_out_counted_and_the_rest_trains(bad):
    step, model = make_step([torch.tensor([bad, 1.0])], adaptive())
    storage = run(step)
    assert model.first.item() == 1 and model.second.item() == pytest.approx(1 - 0.1 * 0.5)
    assert storage.history("adaptive_loss/left_out_loss_cls").latest() == 1
    assert storage.history("adaptive_loss/weight_loss_box").latest() == 0.5
    assert storage.history("loss_box" if bad == 0 else "total_loss").latest() == 1


def test_all_losses_bad_is_a_step_without_change():
    step, model = make_step([torch.tensor([math.nan, math.nan])], adaptive())
    run(step)
    assert model.first.item() == model.second.item() == 1


def test_accumulated_batches_have_weights_of_their_own():
    # per batch d/d(first) = 2 / first = 2, whatever the batch's factor; halved twice, added twice
    step, model = make_step([torch.tensor([1.0, 1.0]), torch.tensor([100.0, 1.0])], adaptive(), accumulate=2)
    run(step)
    assert model.first.item() == pytest.approx(1 - 0.1 * 2)


def test_bfloat16_autocast():
    step, model = make_step([torch.tensor([3.0, 1.0])], adaptive(), precision="bfloat16")
    run(step)
    assert model.first.item() == pytest.approx(1 - 0.1 * 2)


def test_counts_are_saved_and_restored():
    step, _ = make_step([torch.tensor([0.0, 1.0])], adaptive())
    run(step)
    other, _ = make_step([torch.tensor([0.0, 1.0])], adaptive())
    other.load_state_dict(step.state_dict())
    assert other.loss_transforms[0].left_out == {"loss_cls": 1}


def _rank(rank, port, results):
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    torch.manual_seed(0)
    model = DistributedDataParallel(TwoHeads())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    # step 0: means 2 and 1; step 1: NaN on one rank only; step 2: as step 0, which hangs if DDP lost a gradient
    batches = [[torch.tensor(b)] for b in ([1.0 + 2 * rank, 1.0], [math.nan if rank else 1.0, 1.0], [1.0, 1.0])]
    loss = AdaptiveLoss(targets=[("*cls*", 2.0), ("*box*", 0.5)], parameters=model.parameters())
    step = TrainStep(model, batches, optimizer, loss_transforms=[loss])
    seen = []
    with EventStorage():
        for step.iter in range(3):
            step.run_step()
            seen.append((dict(loss.weights), model.module.first.item(), model.module.second.item()))
    results[rank] = seen
    dist.destroy_process_group()


def test_every_rank_uses_the_same_weight(unused_port):
    with mp.Manager() as manager:
        results = manager.dict()
        mp.spawn(_rank, args=(unused_port, results), nprocs=2)
        first, second = results[0], results[1]
    assert first == second
    assert first[0][0] == {"loss_cls": 1.0, "loss_box": 0.5}  # 2 / mean(1, 3), 0.5 / 1
    assert "loss_cls" not in first[1][0] and first[1][1] == first[0][1]  # left out on both ranks
    assert first[2][1] < first[1][1]


@pytest.fixture
def unused_port():
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def guarded(**kwargs):
    return lambda model: [LossGuard(parameters=model.parameters(), **kwargs)]


def test_a_jump_is_skipped_and_the_reference_stays():
    step, model = make_step([torch.tensor([1.0, 1.0]), torch.tensor([50.0, 1.0])], guarded(factor=1.5))
    run(step, 2)
    assert step.loss_transforms[0].reference == pytest.approx(2.0)
    assert model.first.item() == pytest.approx(0.9)  # of the first step only


def test_momentum_moves_a_skipped_step_only_as_released():
    for step_anyway, expected in ((False, 0.9), (True, 0.9 - 0.1 * 0.5)):
        step, model = make_step(
            [torch.tensor([1.0, 1.0]), torch.tensor([50.0, 1.0])], guarded(factor=1.5, step_anyway=step_anyway)
        )
        step.optimizer.param_groups[0]["momentum"] = 0.5
        run(step, 2)
        assert model.first.item() == pytest.approx(expected)


def test_nan_is_skipped_and_not_logged():
    step, model = make_step([torch.tensor([math.nan, 1.0])], guarded(factor=1.5))
    storage = run(step)
    assert model.first.item() == model.second.item() == 1
    assert storage.history("skip_loss/skipped").latest() == 1


def test_a_lucky_low_loss_does_not_end_training():
    guard = LossGuard(factor=1.3, max_skips=2)
    for value, skipped in ((1.0, False), (5.0, True), (5.0, True), (5.0, False), (5.0, False)):
        guard({"loss": torch.tensor(value, requires_grad=True)})
        assert guard.skipped == skipped


def test_guard_state_survives_a_checkpoint():
    guard, other = LossGuard(factor=2.0), LossGuard(factor=2.0)
    guard({"loss": torch.tensor(3.0)})
    other.load_state_dict(guard.state_dict())
    assert other.reference == 3.0


def test_config_builds_one_or_none_and_refuses_both():
    cfg, model = get_cfg(), TwoHeads()
    add_d2x_config(cfg)
    assert build_loss_transforms(cfg, model) == []
    cfg.ADAPTIVE_LOSS.ENABLED = True
    (adaptive_loss,) = build_loss_transforms(cfg, model)
    assert adaptive_loss.target_of("kd_wh_loss1") == 0.3
    cfg.SKIP_LOSS.ENABLED = True
    with pytest.raises(ValueError, match="exclude each other"):
        build_loss_transforms(cfg, model)
