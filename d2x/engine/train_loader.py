"""The training loader: detectron2's parts, in an order that can be continued and with seeded augmentations."""

import logging

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from detectron2.data.build import trivial_batch_collator, worker_init_reset_seed
from detectron2.data.samplers import RepeatFactorTrainingSampler
from torch import Tensor
from torch.utils.data import DataLoader

from d2x.data.sets.training_set import Records, are_wide, training_records
from d2x.distributed import from_main
from d2x.engine.resume.data_order import DataOrder
from d2x.engine.resume.seeding import SeededDataset, derived_seed
from d2x.engine.resume.stopping import ignore_stop_signals
from d2x.errors import require_choice

logger = logging.getLogger(__name__)


def run_seed(cfg: CfgNode) -> int:
    """``SEED``, or, when that is negative, a random seed that all processes share."""
    return cfg.SEED if cfg.SEED >= 0 else from_main(int(np.random.randint(2**31)))


def build_train_loader(cfg: CfgNode, mapper, seed: int) -> DataLoader:
    """A loader of endless training batches, lists of mapped samples; its ``batch_sampler`` is a ``DataOrder``.

    Reads ``DATASETS.TRAIN`` and ``DATALOADER`` as detectron2's loader does, and gives the same batches with any number
    of workers and processes.

    Raises:
        ValueError: unknown ``DATALOADER.SAMPLER_TRAIN``.
    """
    node = cfg.DATALOADER
    records = training_records(cfg.DATASETS.TRAIN, filter_empty=node.FILTER_EMPTY_ANNOTATIONS)
    order = DataOrder(
        repeat_factors(cfg, records, seed),
        batch=cfg.SOLVER.IMS_PER_BATCH,
        seed=seed,
        wide=are_wide(records) if node.ASPECT_RATIO_GROUPING else None,
    )
    records = DatasetFromList(records, copy=False) if isinstance(records, list) else records
    return DataLoader(
        SeededDataset(records, mapper, seed),
        batch_sampler=order,
        num_workers=node.NUM_WORKERS,
        collate_fn=trivial_batch_collator,
        worker_init_fn=_start_worker,
        generator=torch.Generator().manual_seed(derived_seed(seed)),  # or it would draw from the model's generator
    )


def _start_worker(worker: int) -> None:
    worker_init_reset_seed(worker)
    ignore_stop_signals()


def repeat_factors(cfg: CfgNode, records: Records, seed: int) -> Tensor:
    """(M,) float32: how often each record comes in an epoch, by ``DATALOADER.SAMPLER_TRAIN``."""
    node, name = cfg.DATALOADER, cfg.DATALOADER.SAMPLER_TRAIN
    samplers = ("TrainingSampler", "RandomSubsetTrainingSampler", "RepeatFactorTrainingSampler")
    require_choice("DATALOADER.SAMPLER_TRAIN", name, samplers)
    if name == "TrainingSampler":
        return torch.ones(len(records))
    if name == "RandomSubsetTrainingSampler":
        chosen = torch.randperm(len(records), generator=torch.Generator().manual_seed(derived_seed(seed)))
        factors = torch.zeros(len(records))
        factors[chosen[: int(len(records) * node.RANDOM_SUBSET_RATIO)]] = 1
        return factors
    return RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        records, node.REPEAT_THRESHOLD, sqrt=node.REPEAT_SQRT
    )
