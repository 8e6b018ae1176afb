"""Caffe files, layer by layer and whole, run by OpenCV's importer."""

import cv2
import numpy as np
import onnx
import pytest
import torch
from google.protobuf import text_format
from torch import nn

from d2x.deploy import load
from d2x.deploy.check import Tolerance
from d2x.deploy.export import ExportOptions, export_model
from d2x.deploy.exporters.caffe_layers import translate
from d2x.deploy.exporters.caffe_proto import NetParameter

from .builders import compare_all, pictures, tiny_centerx


def run_in_caffe(module: nn.Module, x: torch.Tensor, folder) -> np.ndarray:
    torch.onnx.export(
        module.eval(), (x,), f=str(folder / "m.onnx"), input_names=["images"], output_names=["out"], opset_version=18,
        dynamo=True, external_data=False, verbose=False,
    )  # fmt: skip
    net = translate(onnx.shape_inference.infer_shapes(onnx.load(folder / "m.onnx")), "test")
    (folder / "m.caffemodel").write_bytes(net.SerializeToString())
    (folder / "m.prototxt").write_text(text_format.MessageToString(net))
    loaded = cv2.dnn.readNetFromCaffe(str(folder / "m.prototxt"), str(folder / "m.caffemodel"))
    loaded.setInput(x.numpy(), "images")
    return np.array(loaded.forward("out"))


class Halves(nn.Module):
    """A norm without a convolution before it, the stem's pooling of a ResNet on even and odd sides, a product."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.norm.running_mean.copy_(torch.tensor([1.0, -2.0, 0.5]))
        self.norm.running_var.copy_(torch.tensor([4.0, 0.5, 1.0]))
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)

    def forward(self, x):
        x = self.pool(self.norm((x - 3) / torch.tensor([2.0, 4.0, 8.0]).view(-1, 1, 1)))
        return x * x.sigmoid() - 0.25 * x.relu()


class Doubles(nn.Module):
    """Every way to double a map, one after the other."""

    def __init__(self):
        super().__init__()
        self.ways = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            nn.BatchNorm2d(3),  # OpenCV fuses it with the up-sampling, wrongly, unless they are one layer
            nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1),
            nn.ConvTranspose2d(4, 4, 4, stride=2, padding=1, groups=4, bias=False),
            nn.Upsample(scale_factor=2, mode="nearest"),
        )
        self.ways[1].running_mean.copy_(torch.tensor([0.5, -2.0, 1.0]))
        self.ways[1].running_var.copy_(torch.tensor([4.0, 0.5, 1.0]))

    def forward(self, x):
        return torch.cat([self.ways(x), 2 - self.ways(x)], dim=1)


@pytest.mark.parametrize(
    "module, size", [(Halves(), (8, 7)), (Halves(), (5, 6)), (Doubles(), (4, 3)), (Doubles(), (1, 2))]
)
def test_layers(module, size, tmp_path):
    x = torch.randn(1, 3, *size)
    with torch.no_grad():
        expected = module.eval()(x).numpy()
    np.testing.assert_allclose(run_in_caffe(module, x, tmp_path), expected, rtol=0, atol=1e-5)


def test_what_caffe_has_no_layer_for_is_named(tmp_path):
    with pytest.raises(ValueError, match="Caffe has no layer for (HardSwish|HardSigmoid|Erf|Gelu|Pow|Constant.*|Div)"):
        run_in_caffe(nn.Sequential(nn.Hardswish()), torch.randn(1, 3, 4, 4), tmp_path)


def test_opencv_without_an_importer_is_said_in_one_line(export, tmp_path, monkeypatch):
    """OpenCV 5 has none: neither the export's check nor a finished export can run there."""
    cfg = tiny_centerx(tmp_path)
    folder = export(cfg, "caffe", size=(64, 64))
    monkeypatch.delattr(cv2.dnn, "readNetFromCaffe")
    what = r"^OpenCV \S+ has no importer of Caffe models: pip install 'plain-detectors\[caffe\]'$"
    with pytest.raises(ValueError, match=what):
        load(folder)
    with pytest.raises(ValueError, match=what):
        export_model(cfg, tmp_path / "again", ExportOptions("caffe", size=(64, 64)))
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    "form, opts",
    [
        ("peaks", ()),
        ("heads", ("MODEL.CENTERNET.NECK.UP", "transposed", "MODEL.CENTERNET.NECK.CONV", "separable")),
    ],
)
def test_whole_network(form, opts, export, tmp_path):
    cfg = tiny_centerx(tmp_path, "TEST.DETECTIONS_PER_IMAGE", 1000, *opts)
    folder = export(cfg, "caffe", size=(64, 96), form=form)
    text = (folder / "model.prototxt").read_text()
    net = text_format.Parse(text, NetParameter())
    used = {layer.type for layer in net.layer}
    assert {"Convolution", "Pooling"} <= used and (form == "heads" or {"Eltwise", "Power", "ReLU"} <= used)
    assert not any(layer.blobs for layer in net.layer)  # weights are in the other file
    images = [np.resize(one, (64, 96, 3)) for one in pictures(8)]
    found = compare_all(cfg, load(folder, threads=1), images)
    assert found.detections > 300 and found.within(Tolerance()), str(found)
