"""ncnn, by way of pnnx."""

import contextlib
import io
import shutil
import tempfile
import warnings
from pathlib import Path

import pnnx

from d2x.deploy.exporters.request import ExportRequest
from d2x.deploy.graph import DetectionGraph

FILE = "model.ncnn.param"
WEIGHTS = "model.ncnn.bin"
FORMS = ("heads", "peaks")
PRECISIONS = ("fp32", "fp16")
DYNAMIC = True
BATCHES = False
PACKAGES = ("torch", "pnnx", "ncnn")


def export(graph: DetectionGraph, folder: Path, request: ExportRequest) -> None:
    """Write ``model.ncnn.param`` and ``model.ncnn.bin``. Blobs are in0, and out0, out1, ... in the outputs' order.

    "fp16" stores the weights in half precision and lets the runtime compute in it.

    Raises:
        ValueError: form "peaks" in half precision, where its large factor overflows; pnnx wrote nothing.
    """
    if graph.form == "peaks" and request.precision == "fp16":
        raise ValueError("form peaks needs fp32: its factor of 1e9 overflows half precision; take form heads")
    images = request.example[0][:1]
    larger = graph.example(tuple(side + graph.divisibility for side in images.shape[2:])) if request.dynamic else None
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pnnx traces with TorchScript
        log = io.StringIO()
        with contextlib.redirect_stdout(log):
            pnnx.export(
                graph,
                str(Path(scratch) / "model.pt"),
                images,
                inputs2=larger,
                check_trace=False,
                fp16=request.precision == "fp16",
            )
        for name in (FILE, WEIGHTS):
            if not (Path(scratch) / name).is_file():
                raise ValueError(f"pnnx wrote no {name}: {log.getvalue()[-300:]}")
            shutil.copy(Path(scratch) / name, folder / name)
