"""Maps to boxes against the original's numbers."""

import pytest
import torch
from torch import Tensor

from centerx.centernet import CenterNet
from centerx.decode import decode, keep_peaks, keep_peaks_without_equality, read_best_cells
from centerx.predictions import CenterPredictions

from .golden import cases, load


def rows(boxes: Tensor, scores: Tensor, classes: Tensor, cell: Tensor, width: int) -> Tensor:
    """(score, class, row, column, x1, y1, x2, y2) sorted by descending score, then class, row, column."""
    table = torch.stack([scores, classes.float(), (cell // width).float(), (cell % width).float()], dim=1)
    table = torch.cat([table, boxes], dim=1)
    order = sorted(range(len(table)), key=lambda i: [-table[i, 0].item(), *table[i, 1:4].tolist()])
    return table[order]


@pytest.mark.parametrize("case", cases("centerx", "decode"))
def test_decode(case):
    golden = load("centerx", case)
    tensors, k = golden.tensors, golden.info["options"]["K"]
    heatmap = tensors["input.heat"]
    assert torch.equal(keep_peaks(heatmap), tensors["output.nms_heat"])
    found = decode(heatmap, tensors["input.wh"], tensors.get("input.reg"), k)
    torch.testing.assert_close(found.scores[..., None], tensors["output.scores"], rtol=0, atol=0)
    for i, count in enumerate(tensors["output.positive_count"].tolist()):
        part = (found.boxes[i], found.scores[i], found.classes[i], found.cell[i])
        ours = rows(*(value[:count] for value in part), heatmap.shape[3])
        expected = tensors[f"output.canonical.{i}"]
        last = expected[-1, 0] if count == k else -1.0  # of peaks tied at the k-th score any may have been taken
        above = expected[:, 0] > last
        torch.testing.assert_close(ours[above], expected[above].float(), rtol=0, atol=1e-4)
        peaks = keep_peaks(heatmap[i])
        tied = ours[~above]
        assert all(peaks[int(c), int(y), int(x)] == s for s, c, y, x in tied[:, :4].tolist())


def detections(cls, wh, reg, network_sizes, original_sizes, k, golden):
    """``CenterNet``'s inference on given maps, with the released treatment of borders and padding."""
    model = CenterNet.__new__(CenterNet)
    torch.nn.Module.__init__(model)
    model.stride, model.max_detections, model.min_score = 4, k, -1.0
    model.centres_in_padding, model.clip_boxes = True, False
    predictions = CenterPredictions(torch.logit(cls.double()), wh, reg)
    found = model.detect(predictions, network_sizes)
    for i, (instances, (height, width)) in enumerate(zip(found, original_sizes)):
        result = model._to_original(instances, {"height": height, "width": width})
        expected = {name: golden.tensors[f"output.{i}.{name}"] for name in ("boxes", "scores", "classes")}
        torch.testing.assert_close(result.pred_boxes.tensor, expected["boxes"], rtol=0, atol=1e-3)
        torch.testing.assert_close(result.scores.float(), expected["scores"], rtol=0, atol=0)
        assert torch.equal(result.pred_classes.float(), expected["classes"])
        assert result.image_size == (height, width)  # the original says the resized size here


@pytest.mark.parametrize("case", cases("centerx", "inference_scaling"))
def test_boxes_in_the_original_image(case):
    golden = load("centerx", case)
    options, tensors = golden.info["options"], golden.tensors
    maps = (tensors["input.cls"], tensors["input.wh"], tensors["input.reg"])
    detections(*maps, options["network_sizes"], options["original_sizes"], 100, golden)


@pytest.mark.parametrize("case", cases("centerx", "inference_on_images"))
def test_stand_alone_inference(case):
    golden = load("centerx", case)
    options, tensors = golden.info["options"], golden.tensors
    originals = [tensors[f"input.image.{i}"].shape[:2] for i in range(options["n_images"])]
    resized = []
    for height, width in originals:
        ratio = min(options["max_size"] / height, options["max_size"] / width)
        resized.append((int(height * ratio), int(width * ratio)))
    maps = (tensors["input.cls"], tensors["input.wh"], tensors["input.reg"])
    detections(*maps, resized, originals, options["K"], golden)


@pytest.mark.parametrize("case", cases("centerx", "export_postprocess"))
def test_peaks_inside_the_graph(case):
    golden = load("centerx", case)
    tensors, threshold = golden.tensors, golden.info["options"]["thresh"]
    heatmap = tensors["input.heat"]
    assert torch.equal(keep_peaks(heatmap), tensors["output.strict_nms_heat"])
    kept = keep_peaks_without_equality(heatmap)
    # near ties: a part of a neighbour's score leaks through, in which the last bit of the difference counts
    torch.testing.assert_close(kept, tensors["output.result_heat"], rtol=1e-5, atol=1e-6)
    for i, ratio in enumerate(tensors["input.ratio"].flatten().tolist()):
        maps = (kept[i : i + 1], tensors["input.wh"][i : i + 1], tensors["input.reg"][i : i + 1])
        found = read_best_cells(*maps, heatmap[0].numel())
        above = found.scores[0] >= threshold
        boxes = found.boxes[0][above].double() * 4 / ratio
        ours = rows(boxes, found.scores[0][above], found.classes[0][above], found.cell[0][above], heatmap.shape[3])
        expected = tensors[f"output.detections.{i}"]
        order = torch.tensor(sorted(range(len(ours)), key=lambda j: [-ours[j, 0].item(), *ours[j, 1:4].tolist()]))
        torch.testing.assert_close(ours[order][:, [1, 0, 4, 5, 6, 7]].double(), expected, rtol=0, atol=1e-3)
