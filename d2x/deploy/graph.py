"""The exported module: from raw pixels to readable outputs."""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from d2x.deploy.manifest import GraphFacts


class ExportRequest(NamedTuple):
    """Settings of one export of a graph.

    Attributes:
        example: inputs for tracing; their size and batch are the model's where it is not dynamic.
        dynamic: any size (a multiple of the graph's divisibility) and any batch.
        precision: "fp32", "fp16" or "int8".
        calibration: inputs by name, one dict an image; for "int8".
    """

    example: tuple[Tensor, ...]
    dynamic: bool = False
    precision: str = "fp32"
    calibration: Sequence[dict[str, np.ndarray]] = ()


class DetectionGraph(nn.Module):
    """Base of the exported modules. ``forward(images)`` or ``forward(images, sizes)`` gives a tuple of tensors.

    Inputs: ``images`` (N, 3, H, W) float32, 0-255, H and W multiples of ``facts.divisibility``, each image in the top
    left corner; ``sizes`` (N, 2) int64 (height, width) of each image. Forms with ``sizes`` ignore what the padding
    holds; without it, it must hold the channel means.

    Args:
        facts: what the manifest says of the graph; ``smallest`` is rounded up to the divisibility.
        form: a key of ``d2x.deploy.manifest.OUTPUTS``.
        outputs: the names of the outputs, in this order.
        with_sizes: whether there is the second input.
        square: side of the only input the network takes, 0 where it takes others.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, facts: GraphFacts, *, form: str, outputs: Sequence[str], with_sizes: bool, square: int = 0):
        super().__init__()
        smallest = -(-facts.smallest // facts.divisibility) * facts.divisibility
        self.facts = dataclasses.replace(facts, smallest=smallest)
        self.form, self.output_names, self.square = form, list(outputs), square
        self.input_names = ["images", "sizes"] if with_sizes else ["images"]
        self.network_type = torch.float32
        self.register_buffer("mean", torch.tensor(facts.mean).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(facts.std).view(-1, 1, 1), persistent=False)

    def normalise(self, images: Tensor, sizes: Tensor | None = None) -> Tensor:
        """To the network's unit and type; with ``sizes``, zero outside each image."""
        images = (images - self.mean) / self.std
        if sizes is not None:
            images = torch.where(inside(images.shape[2:], 1, sizes), images, 0.0)
        return images.to(self.network_type)

    def raw(self, *inputs: Tensor) -> Sequence[Tensor]:
        """What the convolutional network gives for the inputs of ``forward``, before any reading of it."""
        raise NotImplementedError

    def half_parts(self) -> list[nn.Module]:
        """The parts that may compute in half precision; what reads boxes from them stays in single precision."""
        raise NotImplementedError

    def float_layers(self) -> list[str]:
        """Names of the layers that stay in single precision when the network is quantized to int8."""
        return []

    def to_half(self) -> "DetectionGraph":
        """Turn those parts to half precision, in place."""
        for part in self.half_parts():
            part.half()
        self.network_type = torch.float16
        return self

    def example(self, size: tuple[int, int], batch: int = 1) -> tuple[Tensor, ...]:
        """Inputs for tracing, images as large as the input of (height, width)."""
        generator = torch.Generator().manual_seed(0)
        images = 255 * torch.rand(batch, 3, *size, generator=generator)
        return (images, torch.tensor([size] * batch)) if "sizes" in self.input_names else (images,)


def inside(hw: Sequence[int], stride: int, sizes: Tensor) -> Tensor:
    """(N, 1, Hf, Wf) bool: cells of ``stride`` pixels that images of ``sizes`` (N, 2) (height, width) reach."""
    height, width = (stride * torch.arange(side, device=sizes.device) for side in hw)
    return ((height < sizes[:, :1])[:, :, None] & (width < sizes[:, 1:])[:, None, :])[:, None]


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
