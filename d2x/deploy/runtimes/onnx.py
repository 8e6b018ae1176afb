"""ONNX Runtime."""

from pathlib import Path

import numpy as np
import onnxruntime

from d2x.deploy.manifest import Manifest


class Runtime:
    """Runs ``model.onnx`` on the CPU, or on a GPU where the installed ONNX Runtime has one."""

    def __init__(self, folder: Path, manifest: Manifest, *, threads: int | None = None, precision: str = "fp32"):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads:
            options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(
            str(folder / manifest.file), options, providers=onnxruntime.get_available_providers()
        )
        self._outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(self._outputs, map(np.asarray, self._session.run(self._outputs, inputs))))
