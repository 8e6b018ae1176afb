"""Caffe models by OpenCV's importer, which OpenCV has up to version 4."""

from pathlib import Path

import cv2
import numpy as np

from d2x.deploy.manifest import Manifest


class Runtime:
    """Runs ``model.prototxt`` and ``model.caffemodel``. Threads are OpenCV's, which has one setting for a process.

    Raises:
        ValueError: OpenCV without a Caffe importer.
    """

    def __init__(self, folder: Path, manifest: Manifest, *, threads: int | None = None, precision: str = "fp32"):
        if not hasattr(cv2.dnn, "readNetFromCaffe"):
            raise ValueError(
                f"OpenCV {cv2.__version__} has no importer of Caffe models: pip install 'plain-detectors[caffe]'"
            )
        if threads:
            cv2.setNumThreads(threads)
        text = folder / manifest.file
        self._net = cv2.dnn.readNetFromCaffe(str(text), str(text.with_suffix(".caffemodel")))
        self._outputs = list(manifest.outputs)

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self._net.setInput(inputs["images"], "images")
        return dict(zip(self._outputs, map(np.array, self._net.forward(self._outputs))))
