"""The export as a whole: what it refuses, what it leaves behind, what it folds and quantizes."""

import json
import os
import signal
import sys
import time

import numpy as np
import onnx
import openvino
import pytest
import torch
from detectron2.layers import Conv2d as NormedConv2d
from detectron2.layers import FrozenBatchNorm2d
from PIL import Image
from torch import nn

from d2x.deploy import load
from d2x.deploy.check import Tolerance, compare
from d2x.deploy.export import ExportOptions, export_model
from d2x.deploy.infer import Detections
from d2x.inference.fold import fold_batch_norms
from tests import fork_server

from .builders import pictures, tiny_centerx

pytestmark = pytest.mark.xdist_group("centerx_exports")  # they look at the same ones


def test_the_command_writes_a_checked_model(centerx_cfg, tmp_path):
    (tmp_path / "config.yaml").write_text(centerx_cfg.dump())
    for i, picture in enumerate(pictures(2)):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    command = ["-W", "ignore", "tools/export_model.py", "--config-file", tmp_path / "config.yaml"]
    command += ["--weights", centerx_cfg.MODEL.WEIGHTS, "--format", "torch-export", "--dynamic", "--form", "heads"]
    command += ["--check", tmp_path, "--output", tmp_path / "out", "TEST.DETECTIONS_PER_IMAGE", 50]
    done = fork_server.run(*command)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "2 images" in done.stdout and "worst box difference" in done.stdout and "checked" in done.stdout
    manifest = json.loads((tmp_path / "out" / "model.json").read_text())
    assert manifest["source"]["checkpoint"] == "model.pth" and len(manifest["source"]["sha256"]) == 64
    assert manifest["outputs"].keys() == {"heat", "pooled", "reg", "wh"} and manifest["stride"] == 4
    assert manifest["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert manifest["max_detections"] == 50 and str(tmp_path) not in json.dumps(manifest)


@pytest.mark.skipif(sys.platform == "win32", reason="has no SIGTERM")
def test_an_export_that_is_ended_leaves_nothing(centerx_cfg, tmp_path):
    (tmp_path / "config.yaml").write_text(centerx_cfg.dump())
    (tmp_path / "here").mkdir()
    command = ["-W", "ignore", "tools/export_model.py", "--config-file", tmp_path / "config.yaml"]
    command += ["--weights", centerx_cfg.MODEL.WEIGHTS, "--format", "onnx", "--dynamic", "--no-check"]
    command += ["--output", tmp_path / "here" / "out"]
    process = fork_server.Program(command, tmp_path / "printed.txt")
    while process.poll() is None and not any((tmp_path / "here").iterdir()):
        time.sleep(0.01)
    assert not (tmp_path / "here" / "out").exists()  # what is begun lies beside it
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM
    assert list((tmp_path / "here").iterdir()) == []


def test_a_failed_check_leaves_nothing(centerx_cfg, check_images, tmp_path):
    options = ExportOptions("torch-export", dynamic=True, tolerance=Tolerance(score=-1.0))
    with pytest.raises(ValueError, match="differs from PyTorch by more than -1 in score or 0.05 px: 2 images"):
        export_model(centerx_cfg, tmp_path / "out", options, check_images=check_images)
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_export_is_replaced_as_a_whole_or_kept(centerx_cfg, check_images, monkeypatch, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("model.json", "earlier.bin"):
        (out / name).write_text("{}")
    options = ExportOptions("torch-export", dynamic=True, tolerance=Tolerance(score=-1.0))
    with pytest.raises(ValueError, match="differs from PyTorch"):
        export_model(centerx_cfg, out, options, check_images=check_images, overwrite=True)
    assert {path.name for path in out.iterdir()} == {"model.json", "earlier.bin"}

    replace, options = os.replace, options._replace(check=False)

    def cannot_put_the_new_one(source, target):
        if target == out and source.name != "earlier":
            raise OSError("no space left")
        replace(source, target)

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space left"):
        patch.setattr("d2x.deploy.export.os.replace", cannot_put_the_new_one)
        export_model(centerx_cfg, out, options, overwrite=True)
    assert {path.name for path in out.iterdir()} == {"model.json", "earlier.bin"} and list(tmp_path.iterdir()) == [out]

    export_model(centerx_cfg, out, options, overwrite=True)
    assert {path.name for path in out.iterdir()} == {"model.json", "model.pt2"} and list(tmp_path.iterdir()) == [out]


def test_an_earlier_export_is_kept_unless_told(centerx_cfg, tmp_path):
    (tmp_path / "mine.txt").write_text("precious")
    options = ExportOptions("torch-export", dynamic=True)
    with pytest.raises(ValueError, match="exists already"):
        export_model(centerx_cfg, tmp_path, options)
    with pytest.raises(ValueError, match="is not the folder of an exported model"):
        export_model(centerx_cfg, tmp_path, options, overwrite=True)
    assert (tmp_path / "mine.txt").read_text() == "precious"


@pytest.mark.parametrize(
    "options, message",
    [
        (ExportOptions("onnx"), "give --size, or --dynamic"),
        (ExportOptions("caffe", dynamic=True), "caffe needs a fixed size"),
        (ExportOptions("caffe", size=(64, 64), precision="int8"), "precision int8: caffe takes fp32"),
        (ExportOptions("onnx", dynamic=True, size=(64, 64)), "not both"),
        (ExportOptions("onnx", dynamic=True, precision="int8"), "needs calibration images"),
        (ExportOptions("ncnn", dynamic=True, form="detections"), "form detections: CenterNet in format ncnn has heads"),
        (ExportOptions("tflite", dynamic=True), "format 'tflite' is not one of onnx"),
    ],
)
def test_impossible_options_are_named(options, message, centerx_cfg, tmp_path):
    with pytest.raises(ValueError, match=message):
        export_model(centerx_cfg, tmp_path / "out", options)
    assert list(tmp_path.iterdir()) == []


def test_plain_detr_goes_into_no_format_of_maps(plain_detr_cfg, tmp_path):
    with pytest.raises(ValueError, match="format ncnn cannot hold PlainDETR: it takes heads or peaks"):
        export_model(plain_detr_cfg, tmp_path / "out", ExportOptions("ncnn", dynamic=True))


def test_deformable_convolutions_name_the_option(tmp_path):
    cfg = tiny_centerx(tmp_path, "MODEL.CENTERNET.NECK.CONV", "modulated_deform")
    with pytest.raises(ValueError, match="deformable.*MODEL.CENTERNET.NECK.CONV plain"):
        export_model(cfg, tmp_path / "out", ExportOptions("onnx", dynamic=True))
    assert not (tmp_path / "out").exists()


class Norms(nn.Module):
    """One norm of each kind that folds, and one that cannot: its convolution runs twice."""

    def __init__(self):
        super().__init__()
        self.plain, self.plain_norm = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)
        self.up, self.up_norm = nn.ConvTranspose2d(4, 6, 4, stride=2), nn.BatchNorm2d(6)
        self.deep, self.deep_norm = nn.ConvTranspose2d(6, 6, 4, groups=3), FrozenBatchNorm2d(6)
        self.wrapped = NormedConv2d(6, 5, 1, norm=nn.BatchNorm2d(5))
        self.shared, self.shared_norm = nn.Conv2d(5, 5, 1), nn.BatchNorm2d(5)

    def forward(self, x):
        x = self.up_norm(self.up(self.plain_norm(self.plain(x)).relu()))
        x = self.wrapped(self.deep_norm(self.deep(x)))
        return self.shared_norm(self.shared(self.shared(x)))


def test_folding_keeps_the_function():
    module = Norms().eval()
    for name, value in module.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape) + 0.5 if "var" in name else torch.randn(value.shape))
    x = torch.randn(2, 3, 7, 9)
    with torch.no_grad():
        expected = module(x)
        assert fold_batch_norms(module, lambda: [module(x)]) == 4
        torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    left = [name for name, part in module.named_modules() if isinstance(part, nn.BatchNorm2d | FrozenBatchNorm2d)]
    assert left == ["shared_norm"]


def test_int8_quantizes_all_but_the_last_layers(centerx_cfg, centerx_onnx, tmp_path):
    images = pictures(4, smallest=64, largest=100)
    options = ExportOptions("onnx", dynamic=True, precision="int8", tolerance=None)
    export_model(centerx_cfg, tmp_path / "out", options, check_images={"a": images[0]}, calibration=images)
    nodes = onnx.load(tmp_path / "out" / "model.onnx").graph.node
    made_by = {output: node for node in nodes for output in node.output}
    kinds = {}
    for node in nodes:
        if node.op_type == "Conv":
            source = made_by.get(node.input[0])
            kinds.setdefault(source is not None and source.op_type == "DequantizeLinear", []).append(node.name)
    assert {name.split("/")[0] for name in kinds[False]} == {
        f"model.head.{name}.out" for name in ("heatmap", "size", "offset")
    }
    assert len(kinds[True]) > 10
    exact, rounded = (load(folder, threads=1).runtime for folder in (centerx_onnx, tmp_path / "out"))
    feeds = load(centerx_onnx).feeds([load(centerx_onnx).prepare(images[0])])
    best = [runtime(feeds)["scores"][0, :20] for runtime in (exact, rounded)]
    assert 0 < np.abs(best[0] - best[1]).max() < 0.2
    size = [(folder / "model.onnx").stat().st_size for folder in (centerx_onnx, tmp_path / "out")]
    assert size[1] < size[0]


def test_openvino_s_int8_leaves_the_reading_of_boxes_alone(centerx_cfg, tmp_path):
    images = pictures(4, smallest=64, largest=100)
    options = ExportOptions("openvino", dynamic=True, precision="int8", tolerance=None)
    export_model(centerx_cfg, tmp_path / "out", options, check_images={"a": images[0]}, calibration=images)
    operations = openvino.Core().read_model(tmp_path / "out" / "model.xml").get_ops()
    names = [one.get_friendly_name() for one in operations if one.get_type_name() == "FakeQuantize"]
    inside = [name for name in names if name.startswith("model.")]
    assert len(inside) > 10 and len(names) - len(inside) <= 1  # that one is the image, on its way into the network
    assert not any(".out/" in name for name in inside)


def detections(rows) -> Detections:
    table = np.array(rows, dtype=np.float32).reshape(-1, 6)
    return Detections(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


def test_differences_are_measured_between_partners():
    expected = detections([[0, 0, 10, 10, 0.9, 0], [50, 50, 60, 60, 0.8, 0], [0, 0, 10, 10, 0.7, 1]])
    moved = detections([[50, 50, 60, 60.5, 0.81, 0], [0, 0, 10, 10, 0.9, 0], [0, 0, 10, 10, 0.7, 1]])
    found = compare(expected, moved, limit=100)
    assert (found.detections, found.unmatched, found.ties) == (3, 0, 0)
    assert found.score == pytest.approx(0.01, abs=1e-6) and found.box == pytest.approx(0.5)
    assert not found.within(Tolerance()) and found.within(Tolerance(0.02, 0.6))


def test_missing_and_surplus_detections_count_unless_cut_off_or_tied():
    two = detections([[0, 0, 10, 10, 0.9, 0], [50, 50, 60, 60, 0.5, 0]])
    one = detections([[0, 0, 10, 10, 0.9, 0]])
    assert compare(two, one, limit=100).unmatched == compare(one, two, limit=100).unmatched == 1
    other_class = detections([[0, 0, 10, 10, 0.9, 0], [50, 50, 60, 60, 0.5, 1]])
    assert compare(two, other_class, limit=100).unmatched == 2
    assert compare(two, other_class, limit=2).unmatched == 0  # the last of a full list
    neighbour = detections([[0, 0, 10, 10, 0.9, 0], [54, 50, 64, 60, 0.5, 0]])
    tied = compare(two, neighbour, limit=100)
    assert (tied.unmatched, tied.ties) == (0, 2) and tied.box == 0
    assert not tied._replace(detections=900).within(Tolerance())  # two of 900 are too many
    assert compare(detections([]), detections([]), limit=100).within(Tolerance())
