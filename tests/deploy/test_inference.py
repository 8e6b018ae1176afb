"""The program that runs exported models: without torch, against the recipes' resizing, the golden peaks, bad input."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from PIL import Image

from centerx.resize import FitInto
from d2x.data.images import read_image
from d2x.deploy import load
from d2x.deploy.peaks import crop_to_image, keep_pooled_peaks, read_peaks
from d2x.deploy.resize import resize_image, resized_size
from tests.parity.golden import cases
from tests.parity.golden import load as load_golden

from .builders import ROOT, pictures

pytestmark = pytest.mark.xdist_group("centerx_exports")  # they look at the same ones

BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "torchvision", "detectron2", "fvcore", "cv2"):
            raise ImportError(f"{name} is blocked")
sys.meta_path.insert(0, Block())
sys.argv = ["infer.py", *sys.argv[1:]]
import runpy
runpy.run_path("tools/infer.py", run_name="__main__")
"""


@pytest.mark.parametrize("folder", ["centerx_onnx", "centerx_openvino", "centerx_ncnn"])
def test_infer_without_torch(folder, request, tmp_path):
    model = request.getfixturevalue(folder)
    (picture,) = pictures(1, smallest=90, largest=100)
    Image.fromarray(picture).save(tmp_path / "one.png")
    command = [sys.executable, "-c", BLOCKED, "--model", model, "--input", tmp_path / "one.png"]
    command += ["--output", tmp_path / "out", "--threshold", "0.5", "--draw", "--threads", "1"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(list(map(str, command)), cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    records = json.loads((tmp_path / "out" / "results.json").read_text())["detections"]
    found = load(model, threads=1)(picture, threshold=0.5)
    assert len(records) == len(found.scores) > 5
    assert [record["score"] for record in records] == pytest.approx(found.scores.tolist(), abs=1e-6)
    x, y, width, height = records[0]["bbox"]
    assert [x, y, x + width, y + height] == pytest.approx(found.boxes[0].tolist(), abs=1e-3)
    assert records[0]["category"] == found_name(model, found.classes[0])
    assert Image.open(tmp_path / "out" / "one.jpg").size == picture.shape[1::-1]


def found_name(model, label):
    return json.loads((model / "model.json").read_text())["classes"][label]


@pytest.mark.parametrize("hw", [(37, 90), (90, 37), (64, 64), (200, 31)])
@pytest.mark.parametrize(
    "resize, augmentation",
    [
        ({"kind": "shortest_edge", "size": 48, "max_size": 100}, T.ResizeShortestEdge([48, 48], 100)),
        ({"kind": "fixed", "size": [40, 72]}, T.Resize((40, 72))),
        ({"kind": "fit", "size": [64, 80], "rounding": "down"}, FitInto((64, 80), rounding="down")),
        (
            {"kind": "fit", "size": [64, 80], "rounding": "nearest", "interpolation": "opencv_area"},
            FitInto((64, 80), interpolation="opencv_area"),
        ),
        ({"kind": "none"}, T.NoOpTransform()),
    ],
)
def test_resizing_is_the_recipes(hw, resize, augmentation):
    image = np.random.default_rng(0).integers(0, 256, (*hw, 3), dtype=np.uint8)
    data = T.AugInput(image)
    T.AugmentationList([augmentation])(data)
    ours = resize_image(image, resized_size(resize, hw), resize.get("interpolation", "bilinear"))
    assert np.array_equal(ours, data.image)


@pytest.mark.parametrize("case", cases("centerx", "export_postprocess"))
def test_peaks_are_read_as_released(case):
    golden = load_golden("centerx", case)
    tensors, threshold = golden.tensors, golden.info["options"]["thresh"]
    for i, ratio in enumerate(tensors["input.ratio"].flatten().tolist()):
        heat, offset, size = (tensors[name][i].numpy() for name in ("output.result_heat", "input.reg", "input.wh"))
        found = read_peaks(heat, offset, size, stride=4, min_score=np.nextafter(threshold, 0), limit=10**6)
        expected = tensors[f"output.detections.{i}"].numpy()  # class, score, box
        assert np.array_equal(found.classes, expected[:, 0])
        np.testing.assert_allclose(found.scores, expected[:, 1], rtol=0, atol=1e-6)
        np.testing.assert_allclose(found.boxes / ratio, expected[:, 2:], rtol=0, atol=1e-3)


def test_padding_suppresses_no_peak_of_the_image():
    heat = torch.rand(2, 9, 11, generator=torch.Generator().manual_seed(0))
    pooled = torch.nn.functional.max_pool2d(heat, 3, 1, 1)
    inside = crop_to_image(heat.numpy(), (23, 34), 4)  # 6 x 9 cells
    assert inside.shape == (2, 6, 9)
    expected = torch.nn.functional.max_pool2d(torch.from_numpy(inside), 3, 1, 1).numpy()
    assert np.array_equal(keep_pooled_peaks(inside, pooled.numpy()), np.where(inside == expected, inside, 0))


def test_per_class_sizes_and_no_offsets():
    heat = np.zeros((2, 3, 4), dtype=np.float32)
    heat[1, 2, 3] = 0.5
    size = np.arange(4, dtype=np.float32)[:, None, None] * np.ones((1, 3, 4), dtype=np.float32)  # class 1: w 2, h 3
    found = read_peaks(heat, None, size, stride=2, min_score=0.0, limit=5)
    assert found.boxes.tolist() == [[2 * (3.5 - 1), 2 * (2.5 - 1.5), 2 * (3.5 + 1), 2 * (2.5 + 1.5)]]
    assert found.classes.tolist() == [1] and found.scores.tolist() == [0.5]


@pytest.mark.parametrize("limit", [0, 1, 7, 60, 1000])
def test_limit_keeps_the_first_of_all_with_ties_in_order(limit):
    generator = np.random.default_rng(limit)
    heat = generator.integers(0, 4, (3, 8, 9)).astype(np.float32) / 4  # many equal scores
    offset, size = generator.random((2, 2, 8, 9), dtype=np.float32)
    found = read_peaks(heat, offset, size, stride=4, min_score=0.3, limit=limit)
    cells = [(-heat[cell], cell) for cell in np.ndindex(*heat.shape) if heat[cell] > 0.3]
    expected = [cell for _, cell in sorted(cells)][:limit]
    assert found.scores.tolist() == [heat[cell] for cell in expected]
    assert found.classes.tolist() == [cell[0] for cell in expected]
    centres = np.array([[column, row] for _, row, column in expected], dtype=np.float32).reshape(-1, 2)
    shift = np.array([offset[:, row, column] for _, row, column in expected], dtype=np.float32).reshape(-1, 2)
    np.testing.assert_allclose((found.boxes[:, :2] + found.boxes[:, 2:]) / 2, 4 * (centres + shift), rtol=1e-5)


def test_wrong_input_is_named(centerx_onnx, tmp_path):
    with pytest.raises(FileNotFoundError, match="no model.json in .*nowhere"):
        load(tmp_path / "nowhere")
    (tmp_path / "model.json").write_text('{"version": 99}')
    with pytest.raises(ValueError, match="model.json: version 99"):
        load(tmp_path)
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match="cannot read image .*bad.jpg"):
        read_image(tmp_path / "bad.jpg")
    with pytest.raises(ValueError, match=r"must be \(H, W, 3\) uint8, got \(4, 4, 3\) float64"):
        load(centerx_onnx, threads=1)(np.zeros((4, 4, 3)))


SIGNALS_AFTER_MODELS = """
import faulthandler, os, signal, sys
from d2x.data.images import read_image
from d2x.deploy import load

faulthandler.enable()
signal.signal(signal.SIGUSR1, lambda *_: print("handled"))
first = load(sys.argv[1], threads=1)
second = load(sys.argv[1], threads=1)
del first
del second
os.kill(os.getpid(), signal.SIGUSR1)
print("alive")
"""


@pytest.mark.parametrize("format", ["onnx", "openvino", "ncnn"])
def test_signals_are_handled_after_models_were_closed(format, request):
    folder = request.getfixturevalue(f"centerx_{format}")
    command = [sys.executable, "-c", SIGNALS_AFTER_MODELS, str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["handled", "alive"]
