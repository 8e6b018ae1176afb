"""Half precision and int8: near to float32 and not it in every format that has them, a clear error in the others."""

import numpy as np
import onnx
import openvino
import pytest

from d2x.deploy import load
from d2x.deploy.export import ExportOptions, export_model

from .builders import pictures

pytestmark = pytest.mark.xdist_group("plain_detr_exports")  # they look at the same ones

WEIGHTS = {"onnx": "model.onnx", "openvino": "model.bin", "ncnn": "model.ncnn.bin"}


def differences(folder, other, image) -> np.ndarray:
    """Of the best scores that two exports give for an image, rank by rank."""
    first, second = (load(one, threads=1)(image).scores[:20] for one in (folder, other))
    assert len(first) == len(second) == 20
    return np.abs(first - second)


@pytest.mark.parametrize(
    "detector, format",
    [
        ("centerx", "onnx"),
        ("centerx", "openvino"),
        ("centerx", "ncnn"),
        ("centerx", "torch-export"),
        ("plain_detr", "onnx"),
        ("plain_detr", "openvino"),
        ("plain_detr", "torch-export"),
    ],
)
def test_half_precision_is_near_and_smaller(detector, format, export, request):
    cfg = request.getfixturevalue(f"{detector}_cfg")
    half = export(cfg, format, precision="fp16", tolerance=None)
    (image,) = pictures(1, smallest=90, largest=100, seed=5)
    found = differences(request.getfixturevalue(f"{detector}_onnx"), half, image)
    assert 0 < found.max() < 0.1
    if format in WEIGHTS:
        exact = request.getfixturevalue(f"{detector}_{format}") / WEIGHTS[format]
        share = 0.8 if detector == "centerx" else 1.0  # what reads boxes stays single, most of this one
        assert (half / WEIGHTS[format]).stat().st_size < share * exact.stat().st_size


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_int8_plain_detr_is_float_after_its_backbone(format, plain_detr_cfg, plain_detr_onnx, tmp_path):
    images = pictures(3, smallest=64, largest=100)
    options = ExportOptions(format, dynamic=True, precision="int8", tolerance=None)
    export_model(plain_detr_cfg, tmp_path / "out", options, check_images={"a": images[0]}, calibration=images)
    if format == "onnx":
        nodes = onnx.load(tmp_path / "out" / "model.onnx").graph.node
        integers = {output for node in nodes if node.op_type == "DequantizeLinear" for output in node.output}
        layers = [node.name for node in nodes if node.op_type in ("Conv", "MatMul") and node.input[0] in integers]
    else:
        operations = openvino.Core().read_model(tmp_path / "out" / "model.xml").get_ops()
        layers = [one.get_friendly_name() for one in operations if one.get_type_name() == "FakeQuantize"]
    inside = [name for name in layers if name.startswith("model.")]
    assert len(inside) > 3 and all(name.startswith(("model.backbone", "model.upsample")) for name in inside)
    assert 0 < differences(plain_detr_onnx, tmp_path / "out", images[0]).max() < 0.2


@pytest.mark.parametrize(
    "format, precision, possible",
    [
        ("caffe", "fp16", "fp32"),
        ("caffe", "int8", "fp32"),
        ("ncnn", "int8", "fp32 or fp16"),
        ("torch-export", "int8", "fp32 or fp16"),
    ],
)
def test_a_precision_that_a_format_lacks_is_named(format, precision, possible, centerx_cfg, tmp_path):
    with pytest.raises(ValueError, match=f"precision {precision}: {format} takes {possible}$"):
        export_model(centerx_cfg, tmp_path / "out", ExportOptions(format, size=(64, 64), precision=precision))
    assert list(tmp_path.iterdir()) == []


def test_the_released_peaks_need_float32(centerx_cfg, tmp_path):
    options = ExportOptions("ncnn", dynamic=True, form="peaks", precision="fp16")
    with pytest.raises(ValueError, match="form peaks needs fp32: .* take form heads"):
        export_model(centerx_cfg, tmp_path / "out", options)
    assert list(tmp_path.iterdir()) == []
