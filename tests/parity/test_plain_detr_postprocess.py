"""From the last layer to scored boxes, against the released post-processing."""

import pytest
import torch

from plain_detr.decode import decode
from plain_detr.predictions import BoxSetPrediction
from tests.parity.golden import cases, load
from tests.parity.plain_detr_parts import check, coder_for


@pytest.mark.parametrize("name", cases("plain_detr", "postprocess"))
def test_detections_equal_the_released_ones(name):
    case = load("plain_detr", name)
    options, tolerance, given = case.info["options"], case.info["tolerance"], case.group("input")
    sizes = [tuple(size) for size in given["target_sizes"].tolist()]
    boxes = given["pred_boxes"]
    # The released code clips pixel boxes only.
    found = decode(
        BoxSetPrediction(given["pred_logits"], boxes, boxes, boxes),
        sizes,
        coder=coder_for(options),
        topk=options["topk"],
        clip=options["reparam"],
    )
    originals = given.get("original_target_sizes", given["target_sizes"]).tolist()
    for image, (ours, size, original) in enumerate(zip(found, sizes, originals)):
        ours.pred_boxes.scale(original[1] / size[1], original[0] / size[0])
        wanted = case.group(f"output.{image}")
        check("scores", ours.scores, wanted["scores"], tolerance["output"])
        check("boxes", ours.pred_boxes.tensor, wanted["boxes"], tolerance["boxes"])
        assert torch.equal(ours.pred_classes, wanted["labels"])
