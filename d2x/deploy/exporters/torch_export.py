"""``torch.export``'s own format, ``model.pt2``."""

from pathlib import Path

import torch

from d2x.deploy.graph import DetectionGraph, ExportRequest, trace

FILE = "model.pt2"
FORMS = ("detections", "peaks", "heads")
PRECISIONS = ("fp32", "fp16")
DYNAMIC = ("size", "batch")
PACKAGES = ("torch",)


def export(graph: DetectionGraph, folder: Path, request: ExportRequest) -> None:
    """Write the program that ``torch.export`` makes of the graph."""
    if request.precision == "fp16":
        graph.to_half()
    torch.export.save(trace(graph, request), folder / FILE)
