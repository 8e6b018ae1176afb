"""ONNX, the format that ONNX Runtime reads and most other runtimes convert."""

from pathlib import Path

import onnx
import torch
from onnxscript import opset18 as op

from d2x.deploy.exporters.request import ExportRequest
from d2x.deploy.exporters.traced import trace
from d2x.deploy.graph import DetectionGraph

FILE = "model.onnx"
FORMS = ("detections", "peaks", "heads")
PRECISIONS = ("fp32", "fp16", "int8")
DYNAMIC = True
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")

# 17 lacks operators that torch emits; from 23 on attention becomes one operator, which TensorRT refuses.
OPSET = 18


def export(graph: DetectionGraph, folder: Path, request: ExportRequest) -> None:
    """Write ``model.onnx``; for "int8" with ONNX Runtime's quantizer, from calibration images."""
    path = folder / FILE
    if request.precision != "int8":
        write_onnx(graph, path, request)
        return
    from d2x.deploy.exporters.quantize import quantize_onnx  # only here: it needs ONNX Runtime

    source = folder / "float.onnx"
    write_onnx(graph, source, request)
    quantize_onnx(source, path, request.calibration, keep=graph.float_layers())
    source.unlink()


def write_onnx(graph: DetectionGraph, path: Path, request: ExportRequest) -> None:
    """Write a graph as one ONNX file, in half precision (but for inputs and outputs) where "fp16" is asked for."""
    if request.precision == "fp16":
        graph.to_half()
    torch.onnx.export(
        trace(graph, request),
        f=str(path),
        input_names=graph.input_names,
        output_names=graph.output_names,
        opset_version=OPSET,
        dynamo=True,
        external_data=False,
        verbose=False,
        custom_translation_table={torch.ops.aten.sort.stable: _sort_stable},
    )
    onnx.checker.check_model(str(path))


def _sort_stable(values, stable=None, dim: int = -1, descending: bool = False):
    """TopK of all: ONNX gives equal values by ascending index."""
    length = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))
    return op.TopK(values, length, axis=dim, largest=int(descending), sorted=1)
