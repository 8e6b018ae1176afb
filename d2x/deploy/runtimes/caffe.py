"""Caffe models by OpenCV's importer, which OpenCV has up to version 4."""

from pathlib import Path

import cv2
import numpy as np

from d2x.deploy.manifest import Manifest
from d2x.deploy.runtimes import Arrays, Runtime


def open_model(file: Path, manifest: Manifest, *, threads: int | None, precision: str) -> Runtime:
    """Run ``model.prototxt`` and ``model.caffemodel``. Threads are OpenCV's, which has one setting for a process.

    Raises:
        ValueError: OpenCV without a Caffe importer.
    """
    if not hasattr(cv2.dnn, "readNetFromCaffe"):
        raise ValueError(
            f"OpenCV {cv2.__version__} has no importer of Caffe models: pip install 'plain-detectors[caffe]'"
        )
    if threads:
        cv2.setNumThreads(threads)
    net = cv2.dnn.readNetFromCaffe(str(file), str(file.with_suffix(".caffemodel")))
    names = list(manifest.outputs)

    def run(inputs: Arrays) -> Arrays:
        net.setInput(inputs["images"], "images")
        return dict(zip(names, map(np.array, net.forward(names))))

    return run
