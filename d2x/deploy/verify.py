"""What an exported model is held against: PyTorch's detections, and AP."""

import dataclasses
import os
import tempfile

import numpy as np
import torch
from detectron2.config import CfgNode
from tqdm import tqdm

from d2x.deploy.check import DEFAULT, Comparison, Tolerance, compare, merge
from d2x.deploy.evaluate import evaluate, to_detections
from d2x.deploy.graph import DetectionGraph
from d2x.deploy.infer import Detections, Detector
from d2x.deploy.manifest import Manifest
from d2x.deploy.resize import resized_size
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
        self._fixed = Detector(manifest, _Eager(graph))
        self._tight = Detector(dataclasses.replace(manifest, size=None, smallest=1), self._fixed.runtime)

    def __call__(self, image: np.ndarray) -> Detections:
        canvas, size = self._fixed.prepare(image)
        padding = self._tight.prepare(image)[0].shape[1:] if self._manifest.form != "peaks" else size
        if tuple(padding) == canvas.shape[1:] and size == resized_size(self._manifest.resize, image.shape[:2]):
            return to_detections(self._predictor(image))
        return self._fixed(image)


class _Eager:
    """A graph as a runtime."""

    def __init__(self, graph: DetectionGraph):
        self._graph = graph

    @torch.no_grad()
    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = self._graph(*(torch.from_numpy(inputs[name]) for name in self._graph.input_names))
        return {name: value.numpy() for name, value in zip(self._graph.output_names, outputs)}


def check(
    detector: Detector, reference: Reference, images: dict[str, np.ndarray], tolerance: Tolerance | None
) -> Comparison:
    """Compare an exported model with PyTorch on images by name, and print the worst differences.

    Raises:
        ValueError: they exceed the tolerance; None reports only.
    """
    total = Comparison()
    for name, image in tqdm(images.items(), desc="check", unit="image"):
        expected, found = reference(image), detector(image)
        one = compare(
            expected,
            found,
            limit=detector.manifest.max_detections,
            tolerance=tolerance or DEFAULT,
            name=os.path.basename(name),
        )
        total = merge(total, one, tolerance or DEFAULT)
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
    with tempfile.TemporaryDirectory() as folder:
        found = {
            label: evaluate(detect, cfg, folder=os.path.join(folder, label), limit=limit, label=label)["AP"]
            for label, detect in (("pytorch", reference), ("exported", detector))
        }
    found["lost"] = found["pytorch"] - found["exported"]
    print(f"AP {found['exported']:.2f}, PyTorch {found['pytorch']:.2f}: {found['lost']:.2f} lost")
    if max_loss is not None and found["lost"] > max_loss:
        raise ValueError(f"the exported model loses {found['lost']:.2f} AP, more than {max_loss:g}")
    return found
