"""One module for each format that can be run: ``Runtime(folder, manifest, threads=..., precision=...)``.

A runtime is called with the inputs by name and gives the outputs by name, numpy arrays with the batch first.
"""

import importlib
from pathlib import Path

from d2x.deploy.manifest import Manifest

# Format -> (packages that its module imports, the extra of setup.py that has them).
FORMATS = {
    "onnx": (("onnxruntime",), "export"),
    "openvino": (("openvino",), "export"),
    "ncnn": (("ncnn",), "export"),
    "caffe": (("cv2",), "caffe"),
    "tensorrt": (("tensorrt", "tensorrt_rtx"), "tensorrt"),
    "torch-export": (("torch",), ""),
}


def open_runtime(folder: Path, manifest: Manifest, *, threads: int | None, precision: str):
    """The runtime of ``manifest.format`` with the model loaded.

    Raises:
        ValueError: an unknown format, or its package is not installed.
    """
    if manifest.format not in FORMATS:
        raise ValueError(f"format '{manifest.format}' is not one of {', '.join(FORMATS)}")
    packages, extra = FORMATS[manifest.format]
    try:
        module = importlib.import_module(f"d2x.deploy.runtimes.{manifest.format.replace('-', '_')}")
    except ImportError as error:
        if error.name is None or error.name.split(".")[0] not in packages:
            raise
        hint = f": pip install 'plain-detectors[{extra}]'" if extra else ""
        raise ValueError(f"format {manifest.format} needs {' or '.join(packages)}, not installed here{hint}") from error
    return module.Runtime(folder, manifest, threads=threads, precision=precision)
