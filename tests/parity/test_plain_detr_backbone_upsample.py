"""Backbone, up-sampling, masks and position codes of a padded batch by the released rules."""

import pytest
import torch
from torch import nn

from plain_detr.padding import nearest_grid
from plain_detr.position_encoding import grid_code
from plain_detr.rescale import rescale
from tests.parity.golden import cases, load
from tests.parity.plain_detr_parts import check, load_official, padded_batch, swin_for

CPU = torch.device("cpu")


@torch.no_grad()
@pytest.mark.parametrize("name", cases("plain_detr", "backbone_upsample"))
def test_map_mask_and_codes_equal_the_released_ones(name):
    case = load("plain_detr", name)
    options, tolerance, wanted = case.info["options"], case.info["tolerance"], case.group("output")
    images = [case.tensors[f"input.image{index}"] for index in range(options["num_images"])]
    sizes = [tuple(image.shape[1:]) for image in images]
    batch = padded_batch(images)
    backbone = swin_for(options["swin"])
    shape = backbone.output_shape()[f"p{max(options['swin']['out_indices']) + 2}"]
    target = options["upsample_stride"]
    model = nn.ModuleDict(
        {"backbone": backbone, "upsample": rescale(shape.channels, shape.stride, target, halve=True)}
    ).eval()
    load_official(model, {f"backbone.{key}": value for key, value in case.state.items()})
    deep = backbone(batch)[f"p{max(options['swin']['out_indices']) + 2}"]
    features = model["upsample"](deep)
    check(f"stride {shape.stride}", deep, wanted["stride32"], tolerance["output"])
    check("features", features, wanted["features"], tolerance["output"])

    def grid(map_, stride):
        hw = tuple(map_.shape[2:])
        return nearest_grid(sizes, [tuple(batch.shape[2:])] * len(sizes), hw, [hw] * len(sizes), stride)

    assert torch.equal(grid(deep, shape.stride).padding(CPU), wanted["stride32_mask"])
    padding = grid(features, target).padding(CPU)
    assert torch.equal(padding, wanted["mask"])
    for key, normalize in (("pos_sine", True), ("pos_sine_unnorm", False)):
        code = grid_code(grid(features, target), options["hidden_dim"], normalize=normalize, device=CPU)
        check(key, code[~padding], wanted[key].permute(0, 2, 3, 1)[~padding], tolerance["pos"])
