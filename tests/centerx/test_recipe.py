"""Augmentations by config, optimizer groups, class count, resizing."""

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T
from torch import nn

from centerx.recipe import CenterXRecipe
from centerx.resize import FitInto, fitted_size
from d2x.config.keys import get_base_cfg
from d2x.detectors import class_count, set_class_count

recipe = CenterXRecipe()


def names(augmentations):
    return [type(one).__name__ for one in augmentations]


def cfg_with(**changes):
    cfg = get_base_cfg()
    cfg.merge_from_list([item for pair in changes.items() for item in pair])
    return cfg


def test_default_is_flip_and_shortest_edge():
    assert names(recipe.train_augmentations(cfg_with())) == ["RandomFlip", "ResizeShortestEdge"]
    assert names(recipe.test_augmentations(cfg_with())) == ["ResizeShortestEdge"]
    assert recipe.test_augmentations(cfg_with(**{"INPUT.MIN_SIZE_TEST": 0})) == []


def test_everything_on_comes_in_order():
    colour = {f"INPUT.CENTERX.{key}": (0.6, 1.4) for key in ("BRIGHTNESS", "CONTRAST", "SATURATION")}
    cfg = cfg_with(
        **colour,
        **{
            "INPUT.CENTERX.ZOOM_OUT": 0.5,
            "INPUT.CROP.ENABLED": True,
            "INPUT.CENTERX.CROP_AROUND_OBJECT": True,
            "INPUT.CENTERX.LIGHTING": 25.5,
            "INPUT.CENTERX.STRONG_COLOUR": 0.5,
            "INPUT.CENTERX.RESIZE": "center_affine",
            "INPUT.CENTERX.SIZE": (64, 96),
        },
    )
    found = recipe.train_augmentations(cfg)
    assert names(found) == [
        "RandomFlip",
        "ZoomOut",
        "BoxCentreCrop",
        "CenterAffine",
        "RandomBrightness",
        "RandomContrast",
        "RandomSaturation",
        "RandomLighting",
        "StrongColour",
    ]
    np.random.seed(0)
    for _ in range(5):
        data = T.AugInput(
            np.random.randint(0, 256, (50, 70, 3), dtype=np.uint8), boxes=np.array([[10.0, 10.0, 40.0, 40.0]])
        )
        transforms = T.AugmentationList(found)(data)
        assert data.image.shape == (64, 96, 3) and data.image.dtype == np.uint8
        assert len(transforms.transforms) >= 1 and data.boxes.shape == (1, 4)


@pytest.mark.parametrize(
    "kind, train, test",
    [
        ("fixed", (96, 64), (96, 64)),
        ("fit", (48, 64), (48, 64)),
        ("center_affine", (96, 64), (48, 64)),
        ("none", (60, 80), (60, 80)),
    ],
)
def test_sizes(kind, train, test):
    cfg = cfg_with(**{"INPUT.CENTERX.RESIZE": kind, "INPUT.CENTERX.SIZE": (96, 64)})
    for augmentations, size in ((recipe.train_augmentations(cfg), train), (recipe.test_augmentations(cfg), test)):
        data = T.AugInput(np.zeros((60, 80, 3), dtype=np.uint8))
        T.AugmentationList(augmentations)(data)
        assert data.image.shape[:2] == size


def test_unknown_resize_is_named():
    with pytest.raises(ValueError, match="INPUT.CENTERX.RESIZE 'big' is not one of"):
        recipe.test_augmentations(cfg_with(**{"INPUT.CENTERX.RESIZE": "big"}))


@pytest.mark.parametrize("how", ["bilinear", "opencv_bilinear", "opencv_area"])
def test_fit_moves_boxes_with_the_image(how):
    image = np.zeros((20, 40, 3), dtype=np.uint8)
    image[5:15, 10:30] = 255
    data = T.AugInput(image, boxes=np.array([[10.0, 5.0, 30.0, 15.0]]))
    (transform,) = T.AugmentationList([FitInto((100, 100), interpolation=how)])(data).transforms
    assert data.image.shape == (50, 100, 3)
    np.testing.assert_allclose(data.boxes, [[25.0, 12.5, 75.0, 37.5]])
    assert data.image[25, 50].tolist() == [255] * 3 and data.image[5, 5].tolist() == [0] * 3
    np.testing.assert_allclose(transform.inverse().apply_box(data.boxes), [[10.0, 5.0, 30.0, 15.0]])


def test_fitted_size_never_is_empty():
    assert fitted_size((1000, 1), (100, 100)) == (100, 1)
    assert fitted_size((2, 2), (100, 50)) == (50, 50)


def test_bias_of_a_norm_counts_as_norm():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1, bias=False))
    model[2].weight.requires_grad = False
    changes = {"BASE_LR": 0.1, "WEIGHT_DECAY": 0.01, "WEIGHT_DECAY_NORM": 0.0, "BIAS_LR_FACTOR": 2.0}
    cfg = cfg_with(**{f"SOLVER.{key}": value for key, value in changes.items()}, **{"SOLVER.WEIGHT_DECAY_BIAS": 0.5})
    of = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in recipe.param_groups(cfg, model)
        for parameter in group["params"]
    }
    assert of == {
        id(model[0].weight): (0.1, 0.01),
        id(model[0].bias): (0.2, 0.5),
        id(model[1].weight): (0.1, 0.0),
        id(model[1].bias): (0.1, 0.0),
    }
    torch.optim.SGD(recipe.param_groups(cfg, model), lr=0.1)


@pytest.mark.parametrize(("name", "node"), [("CenterNet", "CENTERNET"), ("DistilledCenterNet", "CENTERNET")])
def test_class_count(name, node):
    cfg = cfg_with()
    cfg.MODEL.META_ARCHITECTURE = name
    assert class_count(cfg) == 0
    set_class_count(cfg, 4)
    assert class_count(cfg) == cfg.MODEL[node].NUM_CLASSES == 4
