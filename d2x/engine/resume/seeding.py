"""Seeding by what is being computed, not by what this process has computed before.

Every sample is augmented, and every training step runs, with generators seeded from (seed, what, number). Then there is
no generator state to save: a resumed run, another number of workers, or an evaluation in between change nothing.
"""

import contextlib
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch.utils.data import Dataset

from d2x.data.sets.training_set import Records

# What a seed is derived for; the values keep the streams apart.
SAMPLE, STEP, ORDER = 1, 2, 3
ATTEMPTS = 1000  # records tried in place of one that cannot be used; the mapper gives up long before


class Place(NamedTuple):
    """A sample of the endless training stream: how many came before it, and the number of the record it shows."""

    position: int
    record: int


def derived_seed(*numbers: int) -> int:
    """A seed below 2^32 that is a hash of non-negative numbers (numpy's ``SeedSequence``)."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def seed_all(seed: int) -> None:
    """Seed the global generators of Python, numpy and torch (every device)."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside the context the global generators on the CPU start from ``seed``; afterwards they are as before."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])


class SeededDataset(Dataset):
    """Records through a mapper whose random choices depend on the seed and the sample's position alone.

    Args:
        records: detectron2's dataset dicts, by index.
        mapper: makes a sample of a record, or None for a record that cannot be used; then another one, drawn with the
            same generator, takes its place.
        seed: of the run.
    """

    def __init__(self, records: Records, mapper, seed: int):
        self.records, self.mapper, self.seed = records, mapper, seed

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, place: Place) -> dict:
        position, index = place
        with seeded(derived_seed(self.seed, SAMPLE, position)):
            for _ in range(ATTEMPTS):
                sample = self.mapper(self.records[index])
                if sample is not None:
                    return sample
                index = random.randrange(len(self.records))
        raise ValueError(f"{ATTEMPTS} records in a row cannot be used, the last is number {index}")


class SeedEachStep(HookBase):
    """Seeds the global generators before every step from (the trainer's ``seed``, rank, iteration).

    What the model draws (dropout, noise) then depends on the iteration, not on what ran before it.
    """

    trainer: Any  # detectron2's, with ``seed``

    def before_train(self) -> None:
        # TorchScript functions, such as the focal loss of detectron2's own detectors, are else compiled anew after
        # their first calls and round differently from then on: the first steps of a resumed run would.
        torch.jit.set_fusion_strategy([])

    def before_step(self) -> None:
        seed_all(derived_seed(self.trainer.seed, STEP, comm.get_rank(), self.trainer.iter))
