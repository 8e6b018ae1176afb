"""OpenVINO's intermediate representation, converted from ONNX."""

import tempfile
from pathlib import Path

import openvino

from d2x.deploy.exporters.onnx import write_onnx
from d2x.deploy.exporters.request import ExportRequest
from d2x.deploy.graph import DetectionGraph

FILE = "model.xml"
FORMS = ("detections", "peaks", "heads")
PRECISIONS = ("fp32", "fp16", "int8")
DYNAMIC = True
PACKAGES = ("torch", "onnx", "openvino", "nncf")


def export(graph: DetectionGraph, folder: Path, request: ExportRequest) -> None:
    """Write ``model.xml`` and ``model.bin``.

    "fp16" stores half-precision weights, and lets the runtime compute in what is fastest (bfloat16 on many CPUs).
    "int8" quantizes with NNCF from calibration images.
    """
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "model.onnx"
        write_onnx(graph, source, request._replace(precision="fp32"))
        model = openvino.convert_model(source)
    if request.precision == "int8":
        from d2x.deploy.exporters.quantize_openvino import quantize  # only here: it needs NNCF

        model = quantize(model, request.calibration, keep=graph.float_layers())
    openvino.save_model(model, folder / FILE, compress_to_fp16=request.precision == "fp16")
