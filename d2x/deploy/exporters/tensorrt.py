"""A TensorRT engine, built from ONNX by whichever of ``tensorrt`` and ``tensorrt_rtx`` is installed."""

import tempfile
from pathlib import Path

from d2x.deploy.exporters.onnx import write_onnx
from d2x.deploy.graph import DetectionGraph, ExportRequest
from d2x.deploy.runtimes.tensorrt import trt

FILE = "model.engine"
FORMS = ("detections", "peaks", "heads")
PRECISIONS = ("fp32", "fp16", "int8")
DYNAMIC = ("size", "batch")
PACKAGES = ("torch", "onnx", trt.__name__)  # an engine runs in the version that built it

# Of a dynamic engine: (batch, side in units of 32 px) that it takes at least, is tuned for, and takes at most.
PROFILE = ((1, 1), (1, 16), (8, 42))


def export(graph: DetectionGraph, folder: Path, request: ExportRequest) -> None:
    """Build ``model.engine``. It runs on GPUs of the kind it was built for; "tensorrt_rtx" builds without any.

    Types are those of the ONNX file: "fp16" is a network in half precision whose reading of boxes is in single, "int8"
    has explicit quantization nodes. An engine in form "peaks" must be fp32.

    Raises:
        ValueError: TensorRT refuses the network; the message is its parser's or builder's.
    """
    if graph.form == "peaks" and request.precision != "fp32":
        raise ValueError("form peaks needs fp32: its factor of 1e9 overflows half precision; take form heads")
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch) / "model.onnx"
        write_onnx(graph, source, request, symmetric=True)
        engine = _build(source.read_bytes(), graph, request)
    (folder / FILE).write_bytes(engine)


def _build(onnx_model: bytes, graph: DetectionGraph, request: ExportRequest) -> bytes:
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    # From version 11 on every network is strongly typed, and the flag is gone.
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if typed is None else 1 << int(typed))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(onnx_model):
        raise ValueError(f"TensorRT cannot read the model: {parser.get_error(0).desc()}")
    config = builder.create_builder_config()
    if request.dynamic:
        config.add_optimization_profile(_profile(builder, graph))
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise ValueError("TensorRT cannot build the model; its messages are above")
    return bytes(engine)


def _profile(builder, graph: DetectionGraph):
    profile = builder.create_optimization_profile()
    shapes = {"images": [], "sizes": []}
    for batch, units in PROFILE:
        side = max(graph.facts.smallest, -(-32 * units // graph.facts.divisibility) * graph.facts.divisibility)
        shapes["images"].append((batch, 3, side, side))
        shapes["sizes"].append((batch, 2))
    for name in graph.input_names:
        profile.set_shape(name, *shapes[name])
    return profile
