"""Batch sampler of training: an endless order of samples that can be continued from any batch."""

from collections.abc import Iterator, Sequence

import torch
from detectron2.utils import comm
from torch import Tensor
from torch.utils.data import Sampler

from d2x.engine.resume.seeding import ORDER, Place, derived_seed


class DataOrder(Sampler[list[Place]]):
    """Batch sampler: shuffled epochs, one after another, cut into batches of places.

    The order is that of the whole job. A process takes every W-th sample of each batch, W being the number of
    processes, so that any number of processes sees the same batches. Epoch e is shuffled with a generator seeded from
    (seed, e).

    With ``wide``, the two shapes of images are collected apart, and a batch holds one of them, so that little is padded
    (detectron2's aspect-ratio grouping); samples wait until theirs has enough.

    Args:
        factors: (M,) how often each record comes in an epoch on average; the fractions are rounded at random.
        batch: samples of the whole job in a batch.
        seed: of the shuffling.
        wide: (M,) for each record, whether it is wider than high; None for no grouping.

    Raises:
        ValueError: the batch cannot be divided among the processes, or no record is ever taken.
    """

    def __init__(self, factors: Tensor, *, batch: int, seed: int, wide: Sequence[bool] | None = None):
        world = comm.get_world_size()
        if batch < 1 or batch % world:
            raise ValueError(f"SOLVER.IMS_PER_BATCH {batch} must be a multiple of the {world} processes")
        if not factors.sum() >= 1:
            raise ValueError("no training images: every record's repeat factor is 0")
        self.factors, self.batch, self.seed, self.wide = factors, batch, seed, wide
        self._rank, self._world = comm.get_rank(), world
        self._start = {"epoch": 0, "offset": 0, "position": 0, "waiting": [[], []]}
        self._taken, self._follower = 0, None

    def __iter__(self) -> Iterator[list[Place]]:
        """This process's part of every batch, from the place that was set last."""
        for places, _ in self._batches(self._start):
            yield places[self._rank :: self._world]

    def state_after(self, batches: int) -> dict:
        """What ``continue_from`` needs to go on after so many batches from the place that was set last.

        A loader's workers run ahead of the training: the order cannot know by itself how many were used.
        """
        if self._follower is None or batches < self._taken:
            self._taken, self._follower = 0, self._batches(self._start)
            self._state = self._start
        for _ in range(batches - self._taken):
            _, self._state = next(self._follower)
        self._taken = batches
        return {**self._state, "seed": self.seed, "records": len(self.factors)}

    def continue_from(self, state: dict) -> bool:
        """Go on where ``state`` was taken, with its seed; the next iterator starts there.

        Returns:
            False if the data set has another number of records: then a new epoch starts.
        """
        self.seed = state["seed"]
        same = state["records"] == len(self.factors)
        if same:
            keys = ("epoch", "offset", "position", "waiting")
            self._start = {key: state[key] for key in keys}
        else:
            self._start = {"epoch": state["epoch"] + 1, "offset": 0, "position": state["position"], "waiting": [[], []]}
        self._taken, self._follower = 0, None
        return same

    def _batches(self, start: dict) -> Iterator[tuple[list[Place], dict]]:
        """Batches of the whole job, each with the state after it."""
        epoch, offset, position = start["epoch"], start["offset"], start["position"]
        waiting = [[Place(*place) for place in group] for group in start["waiting"]]
        while True:
            indices = self._epoch(epoch)
            while offset < len(indices):
                index = indices[offset]
                group = waiting[0 if self.wide is None or self.wide[index] else 1]
                group.append(Place(position, index))
                offset, position = offset + 1, position + 1
                if len(group) >= self.batch:  # more: the batch was larger before
                    places, group[:] = group[: self.batch], group[self.batch :]
                    left = [[tuple(place) for place in group] for group in waiting]
                    yield places, {"epoch": epoch, "offset": offset, "position": position, "waiting": left}
            epoch, offset = epoch + 1, 0

    def _epoch(self, epoch: int) -> list[int]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, ORDER, epoch))
        whole = self.factors.floor()
        extra = torch.rand(len(self.factors), generator=generator) < self.factors - whole
        indices = torch.repeat_interleave((whole + extra).long())
        return indices[torch.randperm(len(indices), generator=generator)].tolist()
