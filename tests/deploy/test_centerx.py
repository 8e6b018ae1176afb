"""CenterX exported for any size, run in each runtime, against PyTorch's own inference."""

import dataclasses

import numpy as np
import pytest

from d2x.deploy import Detector, load
from d2x.deploy.check import Tolerance, compare
from d2x.deploy.verify import to_detections
from d2x.inference.predictor import Predictor

from .builders import compare_all, pictures, tiny_centerx

pytestmark = pytest.mark.xdist_group("centerx_exports")  # they look at the same ones

LIMITS = Tolerance(score=1e-4, box=0.05)
FOLDERS = ("centerx_onnx", "centerx_openvino", "centerx_ncnn")


@pytest.mark.parametrize("folder", FOLDERS)
def test_fifty_images_of_fifty_sizes(folder, centerx_cfg, request):
    detector = load(request.getfixturevalue(folder), threads=1)
    found = compare_all(centerx_cfg, detector, pictures(50))
    assert found.images == 50 and found.detections > 5000
    assert found.within(LIMITS), str(found)


def test_torch_export_and_sides_of_one_cell(centerx_cfg, export):
    detector = load(export(centerx_cfg, "torch-export"), threads=1)
    images = [*pictures(6, seed=1), *pictures(2, smallest=5, largest=30, seed=2)]
    found = compare_all(centerx_cfg, detector, images)
    assert found.within(LIMITS), str(found)


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_thousand_objects_and_none(folder, centerx_cfg, request):
    detector = load(request.getfixturevalue(folder), threads=1)
    (large,) = pictures(1, smallest=320, largest=321)
    expected = to_detections(Predictor(centerx_cfg)(large))
    assert len(expected.scores) > 950  # of 1000, those empty after clipping are dropped
    assert compare(expected, detector(large), limit=1000).within(LIMITS)

    cfg = centerx_cfg.clone()
    cfg.MODEL.CENTERNET.INFERENCE.MIN_SCORE = 1.0
    assert len(Predictor(cfg)(large)) == 0
    strict = Detector(dataclasses.replace(detector.manifest, min_score=1.0), detector.runtime)
    nothing = strict(large)
    assert nothing.boxes.shape == (0, 4) and nothing.scores.shape == (0,) and nothing.classes.shape == (0,)


def test_an_image_in_a_batch_is_as_alone(centerx_onnx):
    detector = load(centerx_onnx, threads=1)
    images = [*pictures(3, smallest=60, largest=64, seed=3), *pictures(2, smallest=100, largest=128, seed=4)]
    for together, image in zip(detector.batch(images), images):
        for one, other in zip(together, detector(image)):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-4)


def test_fixed_size_with_the_recipe_s_resize(export, tmp_path):
    resize = ("INPUT.CENTERX.RESIZE", "shortest_edge", "INPUT.MIN_SIZE_TEST", 64, "INPUT.MAX_SIZE_TEST", 120)
    cfg = tiny_centerx(tmp_path, *resize, "MODEL.CENTERNET.OFFSET", False)
    detector = load(export(cfg, "onnx", size=(60, 90), form="peaks"), threads=1)
    assert detector.manifest.size == (64, 96) and list(detector.manifest.outputs) == ["heat", "wh"]
    assert detector.manifest.resize == {
        "kind": "shortest_edge",
        "size": 64,
        "max_size": 120,
        "interpolation": "bilinear",
    }
    exact = np.zeros((128, 192, 3), dtype=np.uint8)  # becomes 64 x 96: no padding, as PyTorch sees it
    exact[20:70, 30:120] = 200
    found = compare_all(cfg, detector, [exact])
    assert found.detections > 20 and found.within(LIMITS), str(found)
    canvas, size = detector.prepare(np.zeros((50, 200, 3), dtype=np.uint8))
    assert size == (24, 96) and canvas.shape == (3, 64, 96)  # 64 x 256 does not fit
    assert canvas[:, 30, 0].tolist() == pytest.approx(detector.manifest.mean)
