"""ONNX, the format that ONNX Runtime reads and most other runtimes convert."""

import ast
from pathlib import Path
from typing import Any

import onnx
import torch
from onnxscript import opset18 as op

from d2x.deploy.graph import DetectionGraph, ExportRequest, trace

FILE = "model.onnx"
FORMS = ("detections", "peaks", "heads")
PRECISIONS = ("fp32", "fp16", "int8")
DYNAMIC = ("size", "batch")
PACKAGES = ("torch", "onnx", "onnxscript", "onnxruntime")

# 17 lacks operators that torch emits; from 23 on attention becomes one operator, which TensorRT refuses.
OPSET = 18


def export(graph: DetectionGraph, folder: Path, request: ExportRequest) -> None:
    """Write ``model.onnx``; for "int8" with ONNX Runtime's quantizer, from calibration images."""
    write_onnx(graph, folder / FILE, request)


def write_onnx(graph: DetectionGraph, path: Path, request: ExportRequest, *, symmetric: bool = False) -> None:
    """Write a graph as one ONNX file.

    Args:
        graph: changed to half precision (but for its inputs and outputs) where "fp16" is asked for.
        path: of the file.
        request: see there.
        symmetric: of "int8": activations without a zero point, which TensorRT needs.
    """
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
    model = onnx.load(path)
    _name_nodes_for_layers(model)
    onnx.save(model, path)
    if request.precision == "int8":
        from d2x.deploy.exporters.quantize_onnx import quantize  # only here: it needs ONNX Runtime

        quantize(path, request.calibration, keep=graph.float_layers(), symmetric=symmetric)
    onnx.checker.check_model(str(path))


def _sort_stable(values, stable=None, dim: int = -1, descending: bool = False):
    """TopK of all: ONNX gives equal values by ascending index."""
    length: Any = op.Gather(op.Shape(values), op.Constant(value_ints=[dim]))  # pyright: ignore[reportArgumentType]
    return op.TopK(values, length, axis=dim, largest=int(descending), sorted=1)


def _name_nodes_for_layers(model: onnx.ModelProto) -> None:
    """Call every node ``layer/operator``, and drop the exporter's notes, which hold paths of this machine."""
    for node in model.graph.node:
        notes = {note.key: note.value for note in node.metadata_props}
        scopes = ast.literal_eval(notes.get("pkg.torch.onnx.name_scopes", "[]"))
        if len(scopes) > 1:
            node.name = f"{scopes[-2]}/{node.name}"
        del node.metadata_props[:]
    for value in (*model.graph.value_info, *model.graph.initializer, *model.graph.input, *model.graph.output):
        del value.metadata_props[:]
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
