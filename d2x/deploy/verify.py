"""An exported model against PyTorch: detection by detection, and by AP."""

import dataclasses
import os
import tempfile
from collections.abc import Callable

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.structures import Boxes, Instances
from tqdm import tqdm

from d2x.data.images import read_image
from d2x.deploy.check import DEFAULT, Comparison, Tolerance, compare, merge
from d2x.deploy.graph import DetectionGraph
from d2x.deploy.infer import Detections, Detector
from d2x.deploy.manifest import Manifest
from d2x.deploy.resize import resized_size
from d2x.deploy.runtimes import Arrays, Runtime
from d2x.evaluation.coco import build_coco_evaluator
from d2x.inference.predictor import Predictor


class Reference:
    """PyTorch's answer to the question that an exported model is asked.

    It is the detector's own inference where the exported model sees the image as the detector would, with as much
    padding. A model of fixed size sees more of it, and the detector itself answers a little differently then: there
    the graph as it was before folding and export is run instead. So it is for form "peaks" wherever there is padding,
    whose scores suppress peaks at the image's edge in that form.
    """

    def __init__(self, predictor: Predictor, graph: DetectionGraph, manifest: Manifest):
        self._predictor, self._manifest = predictor, manifest
        self._fixed = Detector(manifest, _eager(graph))
        self._tight = Detector(dataclasses.replace(manifest, size=None, smallest=1), self._fixed.runtime)

    def __call__(self, image: np.ndarray) -> Detections:
        canvas, size = self._fixed.prepare(image)
        padding = self._tight.prepare(image)[0].shape[1:] if self._manifest.form != "peaks" else size
        if tuple(padding) == canvas.shape[1:] and size == resized_size(self._manifest.resize, image.shape[:2]):
            return to_detections(self._predictor(image))
        return self._fixed(image)


def _eager(graph: DetectionGraph) -> Runtime:
    """A graph as a runtime."""

    @torch.no_grad()
    def run(inputs: Arrays) -> Arrays:
        outputs = graph(*(torch.from_numpy(inputs[name]) for name in graph.input_names))
        return {name: value.numpy() for name, value in zip(graph.output_names, outputs)}

    return run


def check(
    detector: Detector, reference: Reference, images: dict[str, np.ndarray], tolerance: Tolerance | None
) -> Comparison:
    """Compare an exported model with PyTorch on images by name, and print the worst differences.

    Raises:
        ValueError: they exceed the tolerance; None reports only.
    """
    total, allowed = Comparison(), tolerance or DEFAULT
    limit = detector.manifest.max_detections
    for name, image in tqdm(images.items(), desc="check", unit="image"):
        comparison = compare(
            reference(image), detector(image), limit=limit, tolerance=allowed, name=os.path.basename(name)
        )
        total = merge(total, comparison, allowed)
    print(total)
    if tolerance is not None and not total.within(tolerance):
        raise ValueError(
            f"the exported model differs from PyTorch by more than {tolerance.score:g} in score or {tolerance.box:g}"
            f" px: {total}"
        )
    return total


def measure_ap(
    detector: Detector, reference: Reference, cfg: CfgNode, *, limit: int = 0, max_loss: float | None = None
) -> dict[str, float]:
    """AP of both on (the first ``limit`` images of) ``DATASETS.TEST``, printed.

    Returns:
        "pytorch", "exported" and "lost", in points.

    Raises:
        ValueError: more than ``max_loss`` points are lost; None reports only.
    """
    pytorch, exported = _evaluate(reference, cfg, limit, "PyTorch"), _evaluate(detector, cfg, limit, "exported")
    lost = pytorch - exported
    print(f"AP {exported:.2f}, PyTorch {pytorch:.2f}: {exported - pytorch:+.2f}")
    if max_loss is not None and lost > max_loss:
        raise ValueError(f"the exported model loses {lost:.2f} AP, more than {max_loss:g}")
    return {"pytorch": pytorch, "exported": exported, "lost": lost}


def _evaluate(detect: Callable[[np.ndarray], Detections], cfg: CfgNode, limit: int, label: str) -> float:
    """AP in points on the first data set of ``DATASETS.TEST``."""
    (name, *_) = cfg.DATASETS.TEST
    records = DatasetCatalog.get(name)[: limit or None]
    with tempfile.TemporaryDirectory() as folder:
        evaluator = build_coco_evaluator(cfg, name, folder)
        evaluator.reset()
        for record in tqdm(records, desc=f"AP {label}", unit="image"):
            image = read_image(record["file_name"], cfg.INPUT.FORMAT)
            evaluator.process([record], [{"instances": to_instances(detect(image), image.shape[:2])}])
        return evaluator.evaluate([record["image_id"] for record in records] if limit else None)["bbox"]["AP"]


def to_instances(detections: Detections, size: tuple[int, ...]) -> Instances:
    """detectron2's form of the detections in an image of (height, width)."""
    instances = Instances((size[0], size[1]))
    instances.pred_boxes = Boxes(torch.from_numpy(detections.boxes))
    instances.scores = torch.from_numpy(detections.scores)
    instances.pred_classes = torch.from_numpy(detections.classes)
    return instances


def to_detections(instances: Instances) -> Detections:
    """``Instances`` in numpy."""
    fields = (instances.pred_boxes.tensor, instances.scores, instances.pred_classes)
    return Detections(*(field.cpu().numpy() for field in fields))
