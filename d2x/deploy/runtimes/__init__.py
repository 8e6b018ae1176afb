"""One module for each format that can be run: ``open_model(file, manifest, threads=..., precision=...)``.

It gives a ``Runtime``, which is called with the inputs by name and gives the outputs by name, the batch first.
"""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np

from d2x.deploy.manifest import Manifest

Arrays = dict[str, np.ndarray]
Runtime = Callable[[Arrays], Arrays]

# Format -> (packages that its runtime imports, the extra of setup.py that has them).
FORMATS = {
    "onnx": (("onnxruntime",), "export"),
    "openvino": (("openvino",), "export"),
    "ncnn": (("ncnn",), "export"),
    "caffe": (("cv2",), "caffe"),
    "tensorrt": (("tensorrt", "tensorrt_rtx"), "tensorrt"),
    "torch-export": (("torch",), "export"),
}


def import_format(package: str, name: str) -> ModuleType:
    """The module of a format in ``d2x.deploy.exporters`` or ``d2x.deploy.runtimes``.

    Raises:
        ValueError: an unknown format, or what it needs is not installed.
    """
    if name not in FORMATS:
        raise ValueError(f"format '{name}' is not one of {', '.join(FORMATS)}")
    try:
        return importlib.import_module(f"{package}.{name.replace('-', '_')}")
    except ImportError as error:
        missing = (error.name or "").split(".")[0]
        if missing in ("", "d2x", "detectron2"):
            raise
        packages, extra = FORMATS[name]
        needed = " or ".join(packages) if missing in packages else missing
        raise ValueError(
            f"format {name} needs {needed}, not installed here: pip install 'plain-detectors[{extra}]'"
        ) from error


def open_runtime(folder: Path, manifest: Manifest, *, threads: int | None, precision: str) -> Runtime:
    """The runtime of ``manifest.format`` with the model loaded; see ``import_format`` for errors."""
    module = import_format(__name__, manifest.format)
    return module.open_model(folder / manifest.file, manifest, threads=threads, precision=precision)
