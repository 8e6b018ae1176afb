"""Plain-DETR exported, against PyTorch's own inference."""

from functools import cache

import numpy as np
import onnx
import pytest
import torch

from d2x.deploy import load
from d2x.deploy.check import Tolerance, compare
from d2x.deploy.verify import to_detections
from d2x.inference.predictor import Predictor
from plain_detr.export import build_graph
from tests.plain_detr.test_backbones import VIT

from .builders import compare_all, pictures, tiny_plain_detr

pytestmark = pytest.mark.xdist_group("plain_detr_exports")  # they look at the same ones

LIMITS = Tolerance(score=1e-4, box=0.05)


@pytest.mark.parametrize("folder", ["plain_detr_onnx", "plain_detr_openvino"])
def test_fifty_images_of_fifty_sizes(folder, plain_detr_cfg, request):
    detector = load(request.getfixturevalue(folder), threads=1)
    images = pictures(50, smallest=detector.manifest.smallest, largest=200)
    found = compare_all(plain_detr_cfg, detector, images)
    assert found.images == 50 and found.detections > 1000
    assert found.within(LIMITS), str(found)


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_thousand_objects_and_none(format, export, tmp_path):
    classes = [str(i) for i in range(60)]  # of each of 20 queries
    cfg = tiny_plain_detr(tmp_path, "DATASETS.CLASS_NAMES", classes, "TEST.DETECTIONS_PER_IMAGE", 1000)
    detector = load(export(cfg, format), threads=1)
    (image,) = pictures(1, smallest=320, largest=321)
    assert detector.runtime(detector.feeds([detector.prepare(image)]))["scores"].shape == (1, 1000)
    expected = to_detections(Predictor(cfg)(image))
    assert len(expected.scores) > 500  # of 1000, those empty after clipping are dropped
    found = compare(expected, detector(image), limit=1000)
    assert found.within(LIMITS), str(found)
    nothing = detector(image, threshold=1.0)
    assert nothing.boxes.shape == (0, 4) and nothing.scores.shape == (0,) and nothing.classes.shape == (0,)


def test_an_image_in_a_batch_is_as_alone(plain_detr_onnx):
    detector = load(plain_detr_onnx, threads=1)
    images = pictures(3, smallest=100, largest=101, seed=3)
    assert detector.manifest.batch is None
    for together, image in zip(detector.batch(images), images):
        for one, other in zip(together, detector(image)):
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-3)


@pytest.fixture(scope="module")
def fixed(plain_detr_cfg, export):
    """Function: format to its export of a fixed size."""
    return cache(lambda format: export(plain_detr_cfg, format, size=(96, 128)))


@pytest.mark.parametrize("format", ["onnx", "openvino"])
def test_a_fixed_size(format, plain_detr_cfg, fixed):
    detector = load(fixed(format), threads=1)
    found = compare_all(plain_detr_cfg, detector, [np.resize(one, (96, 128, 3)) for one in pictures(5)])
    assert found.within(LIMITS), str(found)


# name -> (backbone, its output): blocks that the quick-start's backbone has not.
BACKBONES = {
    "swin_v2": (
        [
            "MODEL.BACKBONE.NAME", "build_swin_v2_backbone", "MODEL.SWIN_V2.EMBED_DIM", 24,
            "MODEL.SWIN_V2.DEPTHS", (2, 1, 2, 2), "MODEL.SWIN_V2.NUM_HEADS", (3, 3, 2, 2),
            "MODEL.SWIN_V2.WINDOW_SIZE", 4,
        ],
        "p5",
    ),
    "vit": (VIT, "p4"),
}  # fmt: skip


@pytest.mark.parametrize("name", BACKBONES)
def test_transformer_backbones_at_a_fixed_size(name, export, tmp_path):
    """OpenVINO reads our ONNX, so that one export tries both."""
    words, feature = BACKBONES[name]
    node = "MODEL.PLAIN_DETR."
    cfg = tiny_plain_detr(
        tmp_path,
        *words,
        node + "IN_FEATURE",
        feature,
        node + "FEATURE_STRIDE",
        16,
        node + "PROPOSALS.STRIDES",
        [8, 16, 32],
    )
    detector = load(export(cfg, "openvino", size=(128, 160)), threads=1)
    found = compare_all(cfg, detector, [np.resize(one, (128, 160, 3)) for one in pictures(3)])
    assert found.detections > 10 and found.within(LIMITS), str(found)


def test_a_fixed_size_makes_position_tables_constants(fixed, plain_detr_onnx):
    of_any_size, of_one = (onnx.load(folder / "model.onnx").graph for folder in (plain_detr_onnx, fixed("onnx")))
    # every table starts from the numbers of the rows or columns
    assert sum(node.op_type == "Range" for node in of_any_size.node) > 3
    assert not any(node.op_type == "Range" for node in of_one.node)
    # Left are parts of weights, and what the first layer makes of the queries' contents, the same for all images.
    of_contents = {"Split", "Reshape", "Add", "MatMul", "LayerNormalization"}
    assert kinds_that_depend_on_no_input(of_one) <= {"Constant", "Slice", "Transpose"} | of_contents


def kinds_that_depend_on_no_input(graph: onnx.GraphProto) -> set[str]:
    """Operators whose values are the same for all inputs."""
    depend, kinds = {one.name for one in graph.input}, set()
    for node in graph.node:
        if depend & set(node.input):
            depend.update(node.output)
        else:
            kinds.add(node.op_type)
    return kinds


VARIANTS = {
    "sigmoid": (
        "BOX_CODER",
        "sigmoid",
        "PROPOSALS.ANCHOR_SIZE",
        0.05,
        "POSITION_ENCODING",
        "sine",
        "BOX_RPB.KIND",
        "none",
    ),  # fmt: skip
    "padded": ("PAD_MULTIPLE", 48),
    "released": (
        "VALID_AREA",
        "nearest",
        "KEEP_INVALID_PROPOSALS",
        True,
        "PADDING_LOGIT",
        -100.0,
        "PAD_MULTIPLE",
        48,
    ),  # fmt: skip
    "encoder": ("ENCODER.LAYERS", 1, "BATCH_INDEPENDENT", False),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_graph_equals_the_detector(variant, tmp_path):
    words = VARIANTS[variant]
    named = [f"MODEL.PLAIN_DETR.{word}" if i % 2 == 0 else word for i, word in enumerate(words)]
    cfg = tiny_plain_detr(tmp_path, *named)
    predictor = Predictor(cfg)
    graph = build_graph(predictor.model, "detections").eval()
    for image in pictures(4, smallest=40, seed=9):
        size = image.shape[:2]
        padded = [-(-side // graph.facts.divisibility) * graph.facts.divisibility for side in size]
        images = torch.full((1, 3, *padded), 255.0)  # whatever the padding holds
        images[0, :, : size[0], : size[1]] = torch.from_numpy(image).permute(2, 0, 1)
        with torch.no_grad():
            boxes, scores, classes = graph(images, torch.tensor([size]))
        expected = to_detections(predictor(image))
        kept = ((boxes[0, :, 2:] > boxes[0, :, :2]).all(1)).numpy()
        np.testing.assert_allclose(scores[0].numpy()[kept], expected.scores, rtol=0, atol=1e-4)
        np.testing.assert_allclose(boxes[0].numpy()[kept], expected.boxes, rtol=0, atol=0.01)
        assert (classes[0].numpy()[kept] == expected.classes).all()
