"""TensorRT engines are built here, where one of its packages is; running them needs a GPU."""

import importlib.util
import sys
from types import SimpleNamespace

import pytest
import torch

from d2x.deploy import load
from d2x.deploy.export import ExportOptions, export_model
from d2x.deploy.runtimes import open_runtime

from .builders import compare_all, pictures

PACKAGES = ("tensorrt", "tensorrt_rtx")
needs_tensorrt = pytest.mark.skipif(
    not any(map(importlib.util.find_spec, PACKAGES)), reason="pip install 'plain-detectors[tensorrt]'"
)


@needs_tensorrt
@pytest.mark.parametrize(
    "detector, precision, size",
    [
        ("centerx", "fp32", None),
        ("centerx", "fp16", (96, 128)),
        ("centerx", "int8", (96, 128)),
        ("plain_detr", "fp32", None),
        ("plain_detr", "fp16", (96, 128)),
        ("plain_detr", "int8", (96, 128)),
    ],
)
def test_engine_is_built(detector, precision, size, request, tmp_path):
    cfg = request.getfixturevalue(f"{detector}_cfg")
    options = ExportOptions("tensorrt", dynamic=size is None, size=size, precision=precision, check=False)
    calibration = pictures(2) if precision == "int8" else []
    manifest = export_model(cfg, tmp_path / "out", options, calibration=calibration)
    assert (tmp_path / "out" / manifest.file).stat().st_size > 10_000
    assert set(PACKAGES) & manifest.versions.keys()
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


def test_absence_is_said_clearly(centerx_cfg, tmp_path, monkeypatch):
    for name in PACKAGES:
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    for part in ("exporters", "runtimes"):
        monkeypatch.delitem(sys.modules, f"d2x.deploy.{part}.tensorrt", raising=False)
    message = r"format tensorrt needs tensorrt or tensorrt_rtx, not installed here: pip install .*\[tensorrt\]"
    with pytest.raises(ValueError, match=message):
        export_model(centerx_cfg, tmp_path / "out", ExportOptions("tensorrt", size=(64, 64)))
    with pytest.raises(ValueError, match=message):
        open_runtime(tmp_path, SimpleNamespace(format="tensorrt"), threads=None, precision="fp32")
