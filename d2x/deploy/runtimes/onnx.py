"""ONNX Runtime, on a GPU where the installed one has it."""

from pathlib import Path

import numpy as np
import onnxruntime

from d2x.deploy.manifest import Manifest
from d2x.deploy.runtimes import Runtime


def open_model(file: Path, manifest: Manifest, *, threads: int | None, precision: str) -> Runtime:
    """Run ``model.onnx``."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if threads:
        options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(file), options, providers=onnxruntime.get_available_providers())
    names = [output.name for output in session.get_outputs()]
    return lambda inputs: dict(zip(names, map(np.asarray, session.run(names, inputs))))
