"""The order of training data can be continued from any batch, and does not depend on workers or processes."""

import itertools
import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from d2x.engine.resume.data_order import DataOrder
from d2x.engine.resume.seeding import Place, SeededDataset, derived_seed, seeded
from d2x.engine.train_loader import repeat_factors


def order(size=10, batch=4, seed=3, wide=None, factors=None):
    return DataOrder(torch.ones(size) if factors is None else torch.tensor(factors), batch=batch, seed=seed, wide=wide)


def take(order, count, skip=0):
    return list(itertools.islice(order, skip, skip + count))


def test_every_epoch_holds_each_record_once_in_another_order():
    places = list(itertools.chain.from_iterable(take(order(size=10, batch=5), 4)))
    assert [place.position for place in places] == list(range(20))
    first, second = [p.record for p in places[:10]], [p.record for p in places[10:]]
    assert sorted(first) == sorted(second) == list(range(10)) and first != second


def test_factors_repeat_and_leave_out_records():
    # 0 never, 2 twice, 2.5 twice or three times, on average 2.5
    places = itertools.chain.from_iterable(take(order(batch=10, factors=[0.0, 2.0, 2.5]), 90))
    counts = np.bincount([place.record for place in places], minlength=3)
    assert counts[0] == 0
    assert counts[2] / counts[1] == pytest.approx(2.5 / 2, rel=0.03)


@pytest.mark.parametrize("wide", [None, [True, False, False] * 4])
@pytest.mark.parametrize("batches", [0, 1, 7, 30])
def test_continues_from_any_batch(wide, batches):
    size = 10 if wide is None else len(wide)
    whole = order(size=size, wide=wide)
    expected = take(whole, 12, skip=batches)
    resumed = order(size=size, wide=wide, seed=99)
    assert resumed.continue_from(whole.state_after(batches))
    assert take(resumed, 12) == expected
    # a second interruption, counted from the first
    again = order(size=size, wide=wide)
    again.continue_from(resumed.state_after(5))
    assert take(again, 7) == expected[5:]


def test_state_holds_plain_values_only(tmp_path):
    torch.save(order(wide=[True, False] * 5).state_after(3), tmp_path / "state.pth")
    state = torch.load(tmp_path / "state.pth", weights_only=True)
    resumed = order(wide=[True, False] * 5)
    resumed.continue_from(state)
    assert take(resumed, 5) == take(order(wide=[True, False] * 5), 5, skip=3)


def test_batches_hold_one_shape_and_no_sample_is_lost():
    wide = [index % 3 == 0 for index in range(12)]
    batches = take(order(size=12, wide=wide), 30)
    assert all(len({wide[place.record] for place in batch}) == 1 for batch in batches)
    positions = sorted(place.position for batch in batches for place in batch)
    assert len(set(positions)) == len(positions) == 120
    assert positions[-1] < 120 + 2 * 3  # at most batch - 1 samples of each shape wait


def test_a_smaller_batch_after_resuming_uses_up_those_that_wait():
    wide = [index % 3 == 0 for index in range(12)]
    resumed = order(size=12, wide=wide, batch=2)
    resumed.continue_from(order(size=12, wide=wide, batch=6).state_after(3))
    batches = take(resumed, 60)
    assert {len(batch) for batch in batches} == {2}
    assert {place.record for batch in batches for place in batch} == set(range(12))


def test_other_data_start_a_new_epoch():
    state = order(size=10).state_after(2)
    other = order(size=11)
    assert not other.continue_from(state)
    assert sorted(place.record for batch in take(other, 11) for place in batch) == sorted(list(range(11)) * 4)


def test_processes_share_each_batch(monkeypatch):
    whole = take(order(), 6)
    parts = []
    for rank in range(2):
        monkeypatch.setattr("d2x.engine.resume.data_order.comm.get_rank", lambda rank=rank: rank)
        monkeypatch.setattr("d2x.engine.resume.data_order.comm.get_world_size", lambda: 2)
        parts.append(take(order(), 6))
    assert [sorted(a + b) for a, b in zip(*parts)] == [sorted(batch) for batch in whole]
    with pytest.raises(ValueError, match="IMS_PER_BATCH 3 must be a multiple of the 2 processes"):
        order(batch=3)


def draw(record):
    if record == "bad":
        return None
    return record, random.random(), np.random.rand(), torch.rand(1).item()


def test_samples_depend_on_seed_and_position_only():
    data = SeededDataset(["a", "b"], draw, seed=5)
    first = data[Place(7, 1)]
    data[Place(8, 0)], random.random(), np.random.rand(), torch.rand(1)
    assert data[Place(7, 1)] == first
    assert data[Place(8, 1)] != first
    assert SeededDataset(["a", "b"], draw, seed=6)[Place(7, 1)] != first


def test_the_callers_generators_are_left_alone():
    def numbers():
        return random.random(), np.random.rand(), torch.rand(1).item()

    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = numbers(), numbers()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = numbers()
    with seeded(3):
        numbers()
    assert (before, numbers()) == expected


def test_another_record_takes_the_place_of_a_bad_one_the_same_each_time():
    data = SeededDataset(["bad", "a", "b", "c"], draw, seed=5)
    taken = [data[Place(position, 0)] for position in range(20)]
    assert taken == [data[Place(position, 0)] for position in range(20)]
    assert {record for record, *_ in taken} == {"a", "b", "c"}


def test_no_usable_record_is_an_error():
    with pytest.raises(ValueError, match="records in a row cannot be used"):
        SeededDataset(["bad"], draw, seed=5)[Place(0, 0)]


def test_derived_seeds_differ():
    assert len({derived_seed(a, b) for a in range(20) for b in range(20)}) == 400


def cfg_with(**options):
    return SimpleNamespace(
        DATALOADER=SimpleNamespace(
            **{"RANDOM_SUBSET_RATIO": 0.5, "REPEAT_THRESHOLD": 0.5, "REPEAT_SQRT": True, **options}
        )
    )


def test_repeat_factors_of_detectron2s_samplers():
    records = [{"annotations": [{"category_id": category}]} for category in (0, 0, 0, 0, 0, 0, 0, 1)]
    assert repeat_factors(cfg_with(SAMPLER_TRAIN="TrainingSampler"), records, 1).tolist() == [1] * 8
    subset = repeat_factors(cfg_with(SAMPLER_TRAIN="RandomSubsetTrainingSampler"), records, 1)
    assert sorted(subset.tolist()) == [0] * 4 + [1] * 4
    # class 1 is in 1/8 of the images: sqrt(0.5 / (1 / 8)) = 2; class 0 in more than half: 1
    rare = repeat_factors(cfg_with(SAMPLER_TRAIN="RepeatFactorTrainingSampler"), records, 1)
    assert rare.tolist() == [1] * 7 + [2]
    with pytest.raises(ValueError, match="SAMPLER_TRAIN 'Other' is not one of"):
        repeat_factors(cfg_with(SAMPLER_TRAIN="Other"), records, 1)
