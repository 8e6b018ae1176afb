"""OpenVINO's intermediate representation, converted from ONNX; int8 by its own quantizer, NNCF."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino

from d2x.deploy.exporters.onnx import write_onnx
from d2x.deploy.graph import DetectionGraph, ExportRequest

FILE = "model.xml"
FORMS = ("detections", "peaks", "heads")
PRECISIONS = ("fp32", "fp16", "int8")
DYNAMIC = ("size", "batch")
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
        model = _quantize(model, request.calibration, keep=graph.float_layers())
    openvino.save_model(model, folder / FILE, compress_to_fp16=request.precision == "fp16")


def _quantize(model: openvino.Model, feeds: Sequence[dict[str, np.ndarray]], *, keep: Sequence[str]) -> openvino.Model:
    """What the graph does outside of any layer, such as reading boxes, stays in float32, and so do layer norms.

    Args:
        keep: further layers that do, by the prefix of their operations' names.
    """
    import nncf  # only here: other precisions do without
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    patterns = ["^/.*", *(f"^{re.escape(layer)}[./].*" for layer in keep)]
    return nncf.quantize(
        model,
        nncf.Dataset(feeds),
        subset_size=len(feeds),
        preset=nncf.QuantizationPreset.MIXED,
        # NNCF's defaults cost the quick start of the heatmap detector 1.0 AP, these two nothing.
        fast_bias_correction=False,
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX
        ),
        # OpenVINO's layer norms, of type MVN, have lost the names of their layers.
        ignored_scope=nncf.IgnoredScope(patterns=patterns, types=["MVN"], validate=False),
    )
