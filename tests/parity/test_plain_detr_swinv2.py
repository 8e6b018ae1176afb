"""Swin V2 gives the released backbone's maps and gradients."""

import pytest
import torch

from d2x.backbones.swin_v2 import SwinV2
from tests.parity.golden import cases, load

BUFFERS = ("relative_coords_table", "relative_position_index")


def build(constructor: dict) -> SwinV2:
    options = dict(constructor)
    options["pretrained_window_sizes"] = options.pop("pretrained_window_size")
    options["out_features"] = [f"p{i + 2}" for i in options.pop("out_indices")]
    return SwinV2(**options, shift_mask_value=-100.0).eval()


def assert_close(actual, expected, tolerance, name):
    rtol, atol = tolerance.get("rtol", 0.0), tolerance.get("atol", 0.0)
    atol += tolerance.get("atol_relative_to_max", 0.0) * float(expected.abs().max())
    torch.testing.assert_close(actual, expected, rtol=rtol, atol=atol, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("case", cases("plain_detr", "swinv2"))
def test_maps_and_gradients(case):
    golden = load("plain_detr", case)
    options, tolerance = golden.info["options"], golden.info["tolerance"]
    model = build(options["constructor"])
    weights = {name: value for name, value in golden.state.items() if not name.endswith(BUFFERS)}
    model.load_state_dict(weights)
    for name, value in golden.state.items():
        if name.endswith(BUFFERS):
            torch.testing.assert_close(model.get_buffer(name), value, msg=lambda text, name=name: f"{name}: {text}")

    image = golden.tensors["input.image"].clone().requires_grad_(options["with_grad"])
    maps = model(image)
    indices = options["constructor"]["out_indices"]
    for i in indices:
        assert_close(maps[f"p{i + 2}"], golden.tensors[f"output.out{i}"], tolerance["output"], f"stage {i}")
    if options["with_grad"]:
        loss = sum((maps[f"p{i + 2}"] * golden.tensors[f"input.grad_weight.{i}"]).sum() for i in indices)
        loss.backward()
        assert_close(image.grad, golden.tensors["grad_input.image"], tolerance["grad"], "image")
        for name, expected in golden.group("grad").items():
            assert_close(model.get_parameter(name).grad, expected, tolerance["grad"], name)
