"""Gradients and detections of one process, or of two that torchrun has started; test_processes.py compares them.

usage: two_processes.py FOLDER (under torchrun: the first process writes FOLDER/results.pth)
"""

import json
import logging
import math
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm
from torch.nn.parallel import DistributedDataParallel

import centerx  # noqa: F401
import plain_detr  # noqa: F401
from d2x.config.load import load_cfg
from d2x.data.prepare import prepare_data
from d2x.data.sets.coco_json import register_coco_json
from d2x.data.sets.shapes import ShapesSpec, generate_shapes
from d2x.engine.health.step_guard import StepGuard
from d2x.engine.resume.stopping import signal_anywhere
from d2x.engine.sync_norm import synchronize_batch_norms
from d2x.engine.trainer import Trainer
from tests.faults.tiny_run import CONFIGS, SMALL, SOLVER

# Objects of each of four images; the first process has images 0 and 2.
CASES = {
    "some everywhere": (3, 1, 2, 4),
    "one process without": (3, 0, 2, 0),
    "one object": (0, 1, 0, 0),
    "none": (0,) * 4,
}
VALIDATION = (5, 1)  # images: uneven, and fewer than processes


def model_of(detector: str):
    """A small detector with batch norms and weights that depend on nothing but the seed."""
    words = [*SOLVER, *SMALL[detector], "WEIGHT_AVERAGING.ENABLED", "False"]
    torch.manual_seed(3)
    return Trainer.build_model(prepare_data(load_cfg(str(CONFIGS[detector]), words)))


def records(counts) -> list[dict]:
    """Images of one size with boxes in them."""
    generator = torch.Generator().manual_seed(5)
    found = []
    for count in counts:
        corners = torch.rand(count, 2, generator=generator) * 30
        sides = 10 + torch.rand(count, 2, generator=generator) * 20
        instances = Instances((64, 64))
        instances.gt_boxes = Boxes(torch.cat([corners, corners + sides], dim=1))
        instances.gt_classes = torch.randint(0, 4, (count,), generator=generator)
        image = torch.randint(0, 256, (3, 64, 64), generator=generator, dtype=torch.uint8)
        found.append({"image": image, "instances": instances, "file_name": "x"})
    return found


def gradients(detector: str, counts) -> dict[str, torch.Tensor]:
    """Of the sum of all losses; of one process: of all images, of several: of this one's share, averaged.

    Of CenterNet in double precision: in single precision a unit at the kink of its ReLU may fall on the other side.
    Plain-DETR encodes positions in single precision only.
    """
    model, rank, world = model_of(detector), comm.get_rank(), comm.get_world_size()
    model = model.double() if detector == "centerx" else model
    model.train()
    if world > 1:
        synchronize_batch_norms(model)
        model = DistributedDataParallel(model)
    sum(model(records(counts)[rank::world]).values()).backward()
    return {name.removeprefix("module."): part.grad for name, part in model.named_parameters() if part.grad is not None}


def detections(detector: str, images: int, folder: Path) -> list[dict]:
    """What the evaluation is given, for a validation set of so many images."""
    name, data = f"two_processes_{images}", folder / f"val_{images}"
    output = folder / f"{detector}_{images}_by_{comm.get_world_size()}"
    register_coco_json(name, str(data / "annotations.json"), str(data / "images"))
    words = [*SOLVER, *SMALL[detector], "DATASETS.TEST", f"('{name}',)", "DATASETS.TRAIN", "()"]
    torch.manual_seed(3)
    try:
        cfg = prepare_data(
            load_cfg(str(CONFIGS[detector]), [*words, "TEST.BATCH_SIZE", "1", "OUTPUT_DIR", str(output)])
        )
        Trainer.test(cfg, Trainer.build_model(cfg))
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    comm.synchronize()
    return json.loads((output / "inference" / name / "coco_instances_results.json").read_text())


def votes() -> list[tuple[bool, str, str]]:
    """Of each process: whether it takes a step that is not finite in the last one, what it logs, and the signal that it
    knows of when the last one got SIGTERM."""
    last = comm.get_rank() == comm.get_world_size() - 1
    model = torch.nn.Linear(1, 1)
    model(torch.ones(1, 1)).sum().backward()
    loss = torch.tensor(math.nan if last else 1.0)
    guard = StepGuard(model)
    record = {"file_name": f"of_{'the_last' if last else 'another'}.jpg"}
    with LogCapture() as log:
        allowed = guard.allows(0, [[record]], [{"loss_a": loss}], loss)
    return comm.all_gather((allowed, log.text, signal_anywhere(signal.SIGTERM if last else None)))


class LogCapture(logging.Handler):
    """Context manager: collects what the guard logs."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += record.getMessage()

    def __enter__(self) -> "LogCapture":
        logging.getLogger("d2x.engine.health.step_guard").addHandler(self)
        return self

    def __exit__(self, *error) -> None:
        logging.getLogger("d2x.engine.health.step_guard").removeHandler(self)


def results(folder: Path) -> dict:
    """Everything that is compared."""
    return {
        **{(d, case): gradients(d, counts) for d in CONFIGS for case, counts in CASES.items()},
        **{(d, images): detections(d, images, folder) for d in CONFIGS for images in VALIDATION},
        "votes": votes(),
    }


def make_validation_sets(folder: Path) -> None:
    for images in VALIDATION:
        generate_shapes(ShapesSpec(images, seed=images, sides=(64, 80)), folder / f"val_{images}")


if __name__ == "__main__":
    dist.init_process_group("gloo")
    comm.create_local_process_group(int(os.environ["LOCAL_WORLD_SIZE"]))
    found = results(Path(sys.argv[1]))
    if comm.is_main_process():
        torch.save(found, Path(sys.argv[1]) / "results.pth")
    dist.destroy_process_group()
