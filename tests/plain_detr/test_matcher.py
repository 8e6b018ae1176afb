"""Assignments: optimal, within the image, and robust to what training throws at them."""

import itertools

import pytest
import torch

from plain_detr.box_coder import DeltaCoder, SigmoidCoder
from plain_detr.hybrid import MatchTask, QueryGroups, match_tasks
from plain_detr.matcher import HungarianMatcher
from plain_detr.predictions import BoxSetPrediction, SetTargets


def boxes(*shape, generator):
    centre, size = (torch.rand(*shape, 2, generator=generator) for _ in range(2))
    return torch.cat([centre, 0.1 + 0.3 * size], dim=-1)


def prediction(n=3, queries=6, classes=4, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, queries, classes, generator=generator)
    found, reference = (scale * boxes(n, queries, generator=generator) for _ in range(2))
    return BoxSetPrediction(logits, found, torch.randn(n, queries, 4, generator=generator), reference)


def targets_of(counts=(2, 0, 4), classes=4, seed=1, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    labels = [torch.randint(classes, (count,), generator=generator) for count in counts]
    return SetTargets.pack([scale * boxes(count, generator=generator) for count in counts], labels)


def pairs_of(matches):
    return sorted(zip(matches.image.tolist(), matches.query.tolist(), matches.target.tolist()))


@pytest.mark.parametrize("coder", [SigmoidCoder(), DeltaCoder()])
def test_the_assignment_is_the_cheapest_of_all(coder):
    found, targets = prediction(), targets_of()
    matcher = HungarianMatcher(coder=coder)
    cost = matcher.cost_matrix(found, targets)
    (matches,) = matcher([MatchTask(found, "")], targets)
    ours = cost[matches.target, matches.query].sum()
    best, first = 0.0, 0
    for count in targets.counts:
        rows = range(first, first + count)
        best += min(sum(cost[r, q] for r, q in zip(rows, some)) for some in itertools.permutations(range(6), count))
        first += count
    torch.testing.assert_close(ours, torch.as_tensor(best))
    assert torch.equal(matches.image, targets.image[matches.target])
    assert sorted(matches.target.tolist()) == list(range(len(targets.boxes)))


def test_many_tasks_at_once_equal_one_by_one_with_one_transfer(monkeypatch):
    matcher, targets = HungarianMatcher(coder=SigmoidCoder()), targets_of()
    tasks = [
        MatchTask(prediction(seed=1), "_d0"),
        MatchTask(prediction(queries=9, seed=2), "_enc", class_agnostic=True),
        MatchTask(prediction(queries=20, seed=3), "_d0_o2m", repeats=3),
    ]
    one_by_one = [matcher([task], targets)[0] for task in tasks]
    transfers, original = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: transfers.append(tensor) or original(tensor))
    for together, alone in zip(matcher(tasks, targets), one_by_one):
        assert pairs_of(together) == pairs_of(alone)
    assert len(transfers) == 1


def test_every_box_appears_as_often_as_it_is_offered():
    targets = targets_of((2, 1))
    (matches,) = HungarianMatcher(coder=SigmoidCoder())([MatchTask(prediction(2, 20), "", repeats=4)], targets)
    assert matches.target.bincount().tolist() == [4, 4, 4]
    assert len(set(zip(matches.image.tolist(), matches.query.tolist()))) == 12


def test_more_boxes_than_queries():
    targets = targets_of((9, 1, 0))
    (matches,) = HungarianMatcher(coder=SigmoidCoder())([MatchTask(prediction(queries=4), "", repeats=2)], targets)
    assert matches.image.bincount().tolist() == [4, 2]
    assert len(set(pairs_of(matches))) == 6


def test_queries_that_are_not_valid_are_not_matched():
    valid = torch.ones(3, 6, dtype=torch.bool)
    valid[0, 1:] = False
    valid[2] = False
    found = prediction()._replace(valid=valid)
    (matches,) = HungarianMatcher(coder=SigmoidCoder())([MatchTask(found, "")], targets_of())
    assert matches.image.tolist() == [0] and matches.query.tolist() == [0]


def test_no_boxes_at_all():
    (matches,) = HungarianMatcher(coder=SigmoidCoder())([MatchTask(prediction(), "")], targets_of((0, 0, 0)))
    assert all(len(part) == 0 and part.dtype == torch.int64 for part in matches)


def test_numbers_that_are_not_finite_do_not_stop_the_solver():
    found = prediction()
    found.logits[0, 0] = float("nan")
    found.boxes[2, 3] = float("inf")
    (matches,) = HungarianMatcher(coder=SigmoidCoder())([MatchTask(found, "")], targets_of())
    assert (0, 0) not in set(zip(matches.image.tolist(), matches.query.tolist()))
    assert len(matches.image) == 6


def test_tasks_of_a_step():
    layers = [prediction(queries=10, seed=seed) for seed in range(2)]
    tasks = match_tasks(layers, prediction(queries=30), QueryGroups(4, 6, 5, 0.5))
    assert [task.suffix for task in tasks] == ["_d0", "_d1", "_enc", "_d0_o2m", "_d1_o2m"]
    assert [task.prediction.logits.shape[1] for task in tasks] == [4, 4, 30, 6, 6]
    assert [task.repeats for task in tasks] == [1, 1, 1, 5, 5]
    assert [task.weight for task in tasks] == [1, 1, 1, 0.5, 0.5]
    assert [task.class_agnostic for task in tasks] == [False, False, True, False, False]
    assert len(match_tasks(layers, None, QueryGroups(10))) == 2
    assert len(match_tasks(layers, None, QueryGroups(4, 6, 0))) == 2
