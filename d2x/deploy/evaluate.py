"""AP of an exported model, by the evaluator that training uses."""

import os
from collections.abc import Callable

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances
from tqdm import tqdm

from d2x.data.images import read_image
from d2x.deploy.infer import Detections
from d2x.engine.trainer import Trainer


def evaluate(
    detect: Callable[[np.ndarray], Detections], cfg: CfgNode, *, folder: str, limit: int = 0, label: str = ""
) -> dict[str, float]:
    """COCO metrics of box detection on the first data set of ``DATASETS.TEST``.

    Args:
        detect: (H, W, 3) uint8 image in the order of ``INPUT.FORMAT`` to its detections.
        cfg: with the data set registered.
        folder: for the evaluator's files.
        limit: use the first images only; 0 for all.
        label: of the progress bar.

    Returns:
        "AP", "AP50", ... in percent.
    """
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = folder
    (name, *_) = cfg.DATASETS.TEST
    evaluator = Trainer.build_evaluator(cfg, name)
    evaluator.reset()
    records = DatasetCatalog.get(name)
    for record in tqdm(records[: limit or None], desc=f"AP {label}".strip(), unit="image"):
        image = read_image(record["file_name"], cfg.INPUT.FORMAT)
        evaluator.process([record], [{"instances": to_instances(detect(image), image.shape[:2])}])
    img_ids = [record["image_id"] for record in records[:limit]] if limit else None
    os.makedirs(folder, exist_ok=True)
    return dict(evaluator.evaluate(img_ids)["bbox"])


def to_instances(found: Detections, size: tuple[int, int]) -> Instances:
    """detectron2's form of the detections in an image of (height, width)."""
    return Instances(
        tuple(size),
        pred_boxes=Boxes(torch.from_numpy(found.boxes)),
        scores=torch.from_numpy(found.scores),
        pred_classes=torch.from_numpy(found.classes),
    )


def to_detections(instances: Instances) -> Detections:
    """The other way round."""
    return Detections(
        instances.pred_boxes.tensor.cpu().numpy(), instances.scores.cpu().numpy(), instances.pred_classes.cpu().numpy()
    )
