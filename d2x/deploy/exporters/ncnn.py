"""ncnn's format, written by pnnx."""

import shutil
import subprocess
import tempfile
import warnings
from pathlib import Path

import pnnx
import torch

from d2x.deploy.graph import DetectionGraph, ExportRequest

FILE = "model.ncnn.param"
WEIGHTS = "model.ncnn.bin"
FORMS = ("heads", "peaks")
PRECISIONS = ("fp32", "fp16")
DYNAMIC = ("size",)
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
    shapes = {"inputshape": list(images.shape)}
    if request.dynamic:  # pnnx takes for variable what differs between two shapes
        shapes["inputshape2"] = [1, 3, *(side + graph.facts.divisibility for side in images.shape[2:])]
    with tempfile.TemporaryDirectory() as scratch:
        traced = Path(scratch) / "model.pt"
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # TorchScript is what pnnx reads, and has had its day
            torch.jit.save(torch.jit.trace_module(graph, {"forward": images}, check_trace=False), str(traced))
        settings = [f"{name}=[{','.join(map(str, shape))}]f32" for name, shape in shapes.items()]
        settings.append(f"fp16={int(request.precision == 'fp16')}")
        done = subprocess.run(
            [pnnx.EXEC_PATH, str(traced), *settings], cwd=scratch, capture_output=True, text=True, check=False
        )
        for name in (FILE, WEIGHTS):
            if done.returncode or not (Path(scratch) / name).is_file():
                raise ValueError(
                    f"pnnx cannot convert the model: {' '.join((done.stdout + done.stderr)[-300:].split())}"
                )
            shutil.copy(Path(scratch) / name, folder / name)
