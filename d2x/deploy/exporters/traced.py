"""``torch.export`` of a graph, with the sizes that may vary."""

import torch
from torch.export import Dim, ExportedProgram

from d2x.deploy.graph import DetectionGraph, ExportRequest


def trace(graph: DetectionGraph, request: ExportRequest) -> ExportedProgram:
    """The program of a graph.

    Raises:
        ValueError: the network cannot be traced with sizes that vary.
    """
    with torch.no_grad():
        if not request.dynamic:
            return torch.export.export(graph, request.example)
        try:
            return torch.export.export(graph, request.example, dynamic_shapes=_dynamic_shapes(graph))
        except Exception as error:  # torch raises many types here; a fixed size needs none of what failed
            reason = " ".join(str(error).split())[:300]
            raise ValueError(
                f"{type(graph).__name__} cannot be exported for any size, leave out --dynamic ({reason})"
            ) from error


def _dynamic_shapes(graph: DetectionGraph) -> dict[str, dict[int, Dim]]:
    batch = Dim("batch", min=1)
    multiple = graph.facts.divisibility
    height, width = (Dim(name, min=graph.facts.smallest // multiple) for name in ("height", "width"))
    if multiple > 1:
        height, width = multiple * height, multiple * width
    shapes = {"images": {0: batch, 2: height, 3: width}, "sizes": {0: batch}}
    return {name: shapes[name] for name in graph.input_names}
