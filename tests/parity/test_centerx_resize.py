"""Resizing, normalising and padding of the released inference and deployment code."""

import numpy as np
import pytest
import torch

from centerx.resize import FitInto, fitted_size

from .centerx_parts import model_for
from .golden import cases, load

GREY_LEVEL = 1 / 255 / 0.224  # of another build of OpenCV's resize, after normalisation


@pytest.mark.parametrize("case", cases("centerx", "resize_sizes"))
def test_sizes(case):
    golden = load("centerx", case)
    longest = golden.info["options"]["max_size"]
    for old, expected in zip(golden.tensors["input.sizes"].tolist(), golden.tensors["output.resized"].tolist()):
        assert list(fitted_size(old, (longest, longest), "down")) == expected
        assert max(fitted_size(old, (longest, longest))) == longest  # unlike the original


@pytest.mark.parametrize("case", cases("centerx", "resize_preprocess"))
def test_stand_alone_inference_input(case):
    golden = load("centerx", case)
    options, tensors = golden.info["options"], golden.tensors
    fit = FitInto([options["max_size"]] * 2, rounding="down", interpolation="opencv_bilinear")
    inputs, params = [], []
    for i in range(options["n_images"]):
        image = tensors[f"input.image.{i}"].numpy()
        resized = fit.get_transform(image).apply_image(image)
        params.append([*image.shape[:2], *resized.shape[:2]])
        inputs.append({"image": torch.from_numpy(resized.transpose(2, 0, 1).copy())})
    opts = {"MODEL.PIXEL_MEAN": options["PIXEL_MEAN"], "MODEL.PIXEL_STD": options["PIXEL_STD"]}
    model = model_for({"opts": {**opts, "MODEL.CENTERNET.USE_DEFORM": False}})
    assert params == tensors["output.params"].tolist()
    batch = model.preprocess_image(inputs).tensor
    assert batch.shape == tensors["output.batch"].shape
    error = (batch - tensors["output.batch"]).abs()
    assert error.max() <= GREY_LEVEL + 1e-4 and (error > 1e-5).float().mean() < 0.05


@pytest.mark.parametrize("case", cases("centerx", "export_preprocess"))
def test_deployment_input(case):
    golden = load("centerx", case)
    options, tensors = golden.info["options"], golden.tensors
    width, height = options["new_size"]
    fit = FitInto((height, width), rounding="down", interpolation="opencv_area")
    for i in range(options["n_images"]):
        image = np.ascontiguousarray(tensors[f"input.image.{i}"].numpy()[..., ::-1])
        resized = fit.get_transform(image).apply_image(image)
        padded = np.zeros((height, width, 3), dtype=np.float32)
        padded[: resized.shape[0], : resized.shape[1]] = resized
        error = np.abs(padded - tensors["output.padded"][i].numpy())
        assert error.max() <= 1.0 and (error > 1e-3).mean() < 0.05
        ratio = min(width / image.shape[1], height / image.shape[0])
        assert ratio == pytest.approx(tensors["output.ratio"][i].item(), rel=1e-12)
        mean, std = (torch.tensor(options[key])[:, None, None] for key in ("PIXEL_MEAN", "PIXEL_STD"))
        # the release pads before it normalises, so that its padding is not 0
        network_input = (tensors["output.padded"][i].permute(2, 0, 1) / 255 - mean) / std
        torch.testing.assert_close(network_input, tensors["output.network_input"][i], rtol=0, atol=1e-5)
