"""The released peak map as an exported graph: what each runtime makes of the golden heatmaps, and the boxes in it."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from centerx.decode import keep_peaks_without_equality
from d2x.deploy.exporters import get_exporter
from d2x.deploy.graph import DetectionGraph, ExportRequest
from d2x.deploy.manifest import GraphFacts
from d2x.deploy.peaks import read_peaks
from d2x.deploy.runtimes import open_runtime
from tests.parity.golden import cases, load


class Peaks(DetectionGraph):
    """The layers of form "peaks" that follow the network, whose heatmap takes the image's place."""

    def __init__(self):
        facts = GraphFacts(mean=[0.0], std=[1.0], divisibility=1, max_detections=1)
        super().__init__(facts, form="peaks", outputs=["heat"], with_sizes=False)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        return (keep_peaks_without_equality(images),)


@pytest.mark.parametrize("format", ["onnx", "openvino", "ncnn", "caffe", "torch-export"])
def test_golden_heatmaps(format, tmp_path):
    exporter, runtimes = get_exporter(format), {}
    manifest = SimpleNamespace(format=format, file=exporter.FILE, inputs={"images": {}}, outputs={"heat": {}})
    found = cases("centerx", "export_postprocess")
    assert len(found) >= 3
    for case in found:
        golden = load("centerx", case)
        tensors, threshold = golden.tensors, golden.info["options"]["thresh"]
        shape = (1, *tensors["input.heat"].shape[1:])
        if shape not in runtimes:
            folder = tmp_path / str(len(runtimes))
            folder.mkdir()
            exporter.export(Peaks().eval(), folder, ExportRequest((torch.rand(shape),)))
            runtimes[shape] = open_runtime(folder, manifest, threads=1, precision="fp32")
        for i, ratio in enumerate(tensors["input.ratio"].flatten().tolist()):
            heat, kept, offset, size = (
                tensors[name][i].numpy() for name in ("input.heat", "output.result_heat", "input.reg", "input.wh")
            )
            ours = runtimes[shape]({"images": heat[None]})["heat"][0]
            np.testing.assert_allclose(ours, kept, rtol=1e-5, atol=1e-6, err_msg=case)
            boxes = read_peaks(ours, offset, size, stride=4, min_score=np.nextafter(threshold, 0), limit=10**6)
            expected = tensors[f"output.detections.{i}"].numpy()  # class, score, box
            assert np.array_equal(boxes.classes, expected[:, 0]), case
            np.testing.assert_allclose(boxes.scores, expected[:, 1], rtol=0, atol=1e-6)
            np.testing.assert_allclose(boxes.boxes / ratio, expected[:, 2:], rtol=0, atol=1e-3)
