"""Caffe: ``model.prototxt`` and ``model.caffemodel``, written from ONNX with layers that every Caffe has."""

import tempfile
from pathlib import Path

import onnx
from google.protobuf import text_format

from d2x.deploy.exporters.caffe_layers import translate
from d2x.deploy.exporters.onnx import write_onnx
from d2x.deploy.graph import DetectionGraph, ExportRequest

FILE = "model.prototxt"
WEIGHTS = "model.caffemodel"
FORMS = ("peaks", "heads")
PRECISIONS = ("fp32",)
DYNAMIC = ()
PACKAGES = ("torch", "onnx", "cv2")


def export(graph: DetectionGraph, folder: Path, request: ExportRequest) -> None:
    """Write both files. Blobs have the outputs' names; of other blobs that nothing reads, the caller takes no notice.

    Raises:
        ValueError: the network has an operator that Caffe has no layer for; names it and the layer.
    """
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "model.onnx"
        write_onnx(graph, source, request)
        model = onnx.shape_inference.infer_shapes(onnx.load(source))
    net = translate(model, name=graph.form)
    (folder / WEIGHTS).write_bytes(net.SerializeToString())
    for layer in net.layer:
        del layer.blobs[:]
    (folder / FILE).write_text(text_format.MessageToString(net), encoding="utf-8")
