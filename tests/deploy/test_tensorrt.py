"""TensorRT engines are built here, where one of its packages is; running them needs a GPU."""

import pytest
import torch

from d2x.deploy import load
from d2x.deploy.export import ExportOptions, export_model
from d2x.deploy.exporters import get_exporter

from .builders import compare_all, pictures


def has_tensorrt() -> bool:
    try:
        get_exporter("tensorrt")
    except ValueError:
        return False
    return True


needs_tensorrt = pytest.mark.skipif(not has_tensorrt(), reason="pip install 'plain-detectors[tensorrt]'")


@needs_tensorrt
@pytest.mark.parametrize(
    "detector, precision", [("centerx", "fp32"), ("centerx", "int8"), ("plain_detr", "fp32"), ("plain_detr", "fp16")]
)
def test_engine_is_built(detector, precision, request, tmp_path):
    cfg = request.getfixturevalue(f"{detector}_cfg")
    options = ExportOptions("tensorrt", size=(96, 128), precision=precision, check=False)
    calibration = pictures(2) if precision == "int8" else []
    manifest = export_model(cfg, tmp_path / "out", options, calibration=calibration)
    assert (tmp_path / "out" / manifest.file).stat().st_size > 10_000
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="runs on an NVIDIA GPU"):
            load(tmp_path / "out")


@needs_tensorrt
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_engine_runs(centerx_cfg, tmp_path):
    export_model(centerx_cfg, tmp_path / "out", ExportOptions("tensorrt", dynamic=True, check=False))
    found = compare_all(centerx_cfg, load(tmp_path / "out"), pictures(10))
    assert not found.unmatched and found.score < 1e-2


@pytest.mark.skipif(has_tensorrt(), reason="TensorRT is installed")
def test_absence_is_said_clearly(centerx_cfg, tmp_path):
    with pytest.raises(ValueError, match="format tensorrt needs .*not installed here"):
        export_model(centerx_cfg, tmp_path / "out", ExportOptions("tensorrt", size=(64, 64)))
