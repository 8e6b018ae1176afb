"""Plain-DETR as a graph from pixels to boxes; see ``d2x.deploy``.

The detector crops its map to the image and knows every size as a number. The graph keeps the whole map of the padded
input, whose size may be symbolic, gets the images' sizes as a tensor, and masks what the detector crops.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from d2x.deploy.graph import DetectionGraph
from d2x.deploy.manifest import OUTPUTS, GraphFacts
from d2x.deploy.resize import shortest_edge
from plain_detr.decode import best_pairs
from plain_detr.padding import FeatureGrid, Size, resized_hw, size_of, sizes_wh
from plain_detr.plain_detr import Memory, PlainDETR
from plain_detr.position_encoding import grid_code
from plain_detr.rescale import InputProjection

FORMS: Sequence[str] = ("detections",)


def build_graph(model: PlainDETR, form: str) -> DetectionGraph:
    """The graph of a detector in evaluation mode; it shares the detector's weights."""
    return {"detections": PlainDETRDetections}[form](model)


def test_resize(cfg: CfgNode) -> dict:
    """The recipe's test-time resize as ``d2x.deploy.resize`` describes it."""
    return shortest_edge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)


class TensorGrid(FeatureGrid):
    """``FeatureGrid`` for a graph: the map's size may be symbols, those of images are (N, 2) int64 tensors.

    The map is not cut to the images, so that every one's ``own`` is all of it.
    """

    @classmethod
    def of(cls, stride: int, hw: Size, valid: Any, extent: Any) -> "TensorGrid":
        """From tensors, which ``FeatureGrid`` reads as it does lists."""
        return cls(stride, hw, [], valid, extent)

    def key_padding(self, device: torch.device) -> Tensor:
        """(N, L) bool as ``padding``: whether any is True is not known."""
        return self.padding(device).flatten(1)

    def level(self, stride: int, hw: Size, rule: str) -> "TensorGrid":
        """See ``FeatureGrid.level``."""
        if rule == "image":
            return TensorGrid.of(stride, hw, _cells(torch.as_tensor(self.extent), stride), self.extent)
        valid = _nearest_valid(torch.as_tensor(self.valid), self.hw, resized_hw(self.hw, self.stride, stride))
        return TensorGrid.of(stride, hw, valid, valid * stride)


class PlainDETRDetections(DetectionGraph):
    """Form "detections": the best ``max_detections`` pairs of query and class."""

    def __init__(self, model: PlainDETR):
        multiple = model.pad_multiple if model.batch_independent else 1
        facts = GraphFacts(
            mean=model.pixel_mean.flatten().tolist(),
            std=model.pixel_std.flatten().tolist(),
            divisibility=math.lcm(multiple, max(model.backbone.size_divisibility, 1)),
            max_detections=min(model.topk, model.groups.one_to_one * model.num_classes),
            min_score=-1.0,
            smallest=2 * max(model.proposals.strides),
        )
        outputs, square = list(OUTPUTS["detections"]), model.backbone.padding_constraints.get("square_size", 0)
        super().__init__(facts, form="detections", outputs=outputs, with_sizes=True, square=square)
        self.model, self.multiple = model, multiple

    def half_parts(self) -> list[nn.Module]:
        return [self.model.backbone, self.model.upsample]

    def float_layers(self) -> list[str]:
        parts = ("input_proj", "encoder", "proposals", "queries", "decoder")
        return [f"model.{part}" for part in parts]

    def raw(self, *inputs: Tensor) -> Sequence[Tensor]:
        images, sizes = inputs
        return [self.model.backbone(self.normalise(images, sizes))[self.model.in_feature]]

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See ``DetectionGraph``; gives boxes (N, D, 4), scores (N, D), classes (N, D)."""
        layers, _ = self.model.predict(self._encode(images, sizes), training=False)
        extent = sizes_wh(sizes, sizes.device)
        return best_pairs(layers[-1], extent, coder=self.model.coder, topk=self.facts.max_detections)

    def _encode(self, images: Tensor, sizes: Tensor) -> Memory:
        """As ``PlainDETR.encode``."""
        model = self.model
        features = model.upsample(model.backbone(self.normalise(images, sizes))[model.in_feature]).float()
        grid, own = self._grid(sizes, size_of(images), size_of(features))
        features = _project(model.input_proj, features, own)
        outside = grid.padding(features.device)
        if model.valid_area == "image":
            features = features.masked_fill(outside[:, None], 0)
        position = grid_code(grid, model.hidden_dim, normalize=model.normalize_position, device=features.device)
        position = position + model.level_embed
        if model.encoder is not None:
            features = model.encoder(features, position, outside).masked_fill(outside[:, None], 0)
        return Memory(features, position, grid)

    def _grid(self, sizes: Tensor, padded: Size, hw: Size) -> tuple[TensorGrid, Tensor | None]:
        """The grid, and the cells (N, 1, Hf, Wf) that the norm of the projection sees; None for all of them."""
        stride = self.model.proposals.stride
        if self.model.valid_area == "nearest":
            valid = _nearest_valid(sizes, padded, hw)
            return TensorGrid.of(stride, hw, valid, valid * stride), None
        grid = TensorGrid.of(stride, hw, _cells(sizes, stride), sizes)
        if not self.model.batch_independent:
            return grid, None
        rounded = _cells(sizes, self.multiple) * self.multiple
        return grid, ~TensorGrid.of(stride, hw, _cells(rounded, stride), rounded).padding(sizes.device)[:, None]


def _project(projection: InputProjection, features: Tensor, own: Tensor | None) -> Tensor:
    """The projection, its group norm over the cells that are ``own`` alone; the others are finite and mean nothing."""
    if own is None:
        return projection(features)
    norm = projection.norm
    x, weight = projection.conv(features), own.to(features.dtype)

    def over_groups(sums: Tensor) -> Tensor:
        """(N, C) sums over cells to the mean of each channel's group, (N, C, 1, 1)."""
        size = sums.shape[1] // norm.num_groups
        means = sums.unflatten(1, (norm.num_groups, size)).mean(2) / weight.sum((2, 3))
        return means.repeat_interleave(size, dim=1)[..., None, None]

    x = x - over_groups((x * weight).sum((2, 3)))
    x = x * torch.rsqrt(over_groups((x**2 * weight).sum((2, 3))) + norm.eps)
    return x * norm.weight[:, None, None] + norm.bias[:, None, None]


def _cells(sizes: Tensor, stride: int) -> Tensor:
    """Cells of ``stride`` pixels that sizes reach into."""
    return (sizes + (stride - 1)) // stride


def _nearest_valid(valid: Tensor, full: Size, resized: Size) -> Tensor:
    """``plain_detr.padding.nearest_valid`` for (N, 2) lengths of both axes."""
    counts = []
    for axis in (0, 1):
        source = torch.arange(resized[axis], device=valid.device) * full[axis] // resized[axis]
        counts.append((source < valid[:, axis : axis + 1]).sum(1))
    return torch.stack(counts, dim=1)
