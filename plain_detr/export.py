"""Plain-DETR as a graph from pixels to boxes; see ``d2x.deploy``.

The detector crops its map to the image and knows every size as a number. The graph keeps the whole map of the padded
input, whose size may be symbolic, gets the images' sizes as a tensor, and masks what the detector crops.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from d2x.deploy.graph import DetectionGraph
from d2x.deploy.manifest import OUTPUTS, GraphFacts
from d2x.deploy.resize import shortest_edge
from plain_detr.box_coder import cxcywh_to_xyxy
from plain_detr.padding import Size, resized_hw
from plain_detr.plain_detr import Memory, PlainDETR
from plain_detr.position_encoding import grid_code
from plain_detr.rescale import InputProjection

FORMS = ("detections",)


def build_graph(model: PlainDETR, form: str) -> DetectionGraph:
    """The graph of a detector in evaluation mode; it shares the detector's weights."""
    return {"detections": PlainDETRDetections}[form](model)


def test_resize(cfg: CfgNode) -> dict:
    """The recipe's test-time resize as ``d2x.deploy.resize`` describes it."""
    return shortest_edge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)


class TensorGrid(NamedTuple):
    """``FeatureGrid`` for a graph: sizes of images are tensors, and the map is not cut to them.

    Attributes:
        stride: input pixels per cell.
        hw: (Hf, Wf) of the map, numbers or symbols.
        valid: (N, 2) int64 (rows, columns) that hold each image.
        extent: (N, 2) int64 (height, width) in pixels that counts as image.
    """

    stride: int
    hw: Size
    valid: Tensor
    extent: Tensor

    def padding(self, device: torch.device) -> Tensor:
        """(N, Hf, Wf) bool, True where there is no image."""
        height, width = (torch.arange(side, device=device) for side in self.hw)
        return (height >= self.valid[:, :1])[:, :, None] | (width >= self.valid[:, 1:])[:, None, :]

    def key_padding(self, device: torch.device) -> Tensor:
        """(N, L) bool as ``padding``."""
        return self.padding(device).flatten(1)

    def extent_wh(self, device: torch.device) -> Tensor:
        """(N, 1, 2) float32 (width, height) in pixels."""
        return self.extent.flip(1).float()[:, None]

    def level(self, stride: int, hw: Size, rule: str) -> "TensorGrid":
        """See ``FeatureGrid.level``."""
        if rule == "image":
            return TensorGrid(stride, hw, _cells(self.extent, stride), self.extent)
        valid = _nearest_valid(self.valid, self.hw, resized_hw(self.hw, self.stride, stride))
        return TensorGrid(stride, hw, valid, valid * stride)


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

    def raw(self, images: Tensor, sizes: Tensor) -> Sequence[Tensor]:
        return [self.model.backbone(self.normalise(images, sizes))[self.model.in_feature]]

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See ``DetectionGraph``; gives boxes (N, D, 4), scores (N, D), classes (N, D)."""
        layers, _ = self.model.predict(self._encode(images, sizes), training=False)
        prediction, extent = layers[-1], sizes.flip(1).float()[:, None]
        scores, index = prediction.logits.float().sigmoid().flatten(1).topk(self.facts.max_detections)
        query = index // self.model.num_classes
        classes = index - query * self.model.num_classes
        boxes = prediction.boxes.float().gather(1, query[..., None].expand(-1, -1, 4))
        boxes = cxcywh_to_xyxy(self.model.coder.to_pixels(boxes, extent))
        return torch.minimum(boxes.clamp(min=0), extent.repeat(1, 1, 2)), scores, classes

    def _encode(self, images: Tensor, sizes: Tensor) -> Memory:
        """As ``PlainDETR.encode``."""
        model = self.model
        features = model.upsample(model.backbone(self.normalise(images, sizes))[model.in_feature]).float()
        grid, own = self._grid(sizes, tuple(images.shape[2:]), tuple(features.shape[2:]))
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
            return TensorGrid(stride, hw, valid, valid * stride), None
        grid = TensorGrid(stride, hw, _cells(sizes, stride), sizes)
        if not self.model.batch_independent:
            return grid, None
        rounded = _cells(sizes, self.multiple) * self.multiple
        return grid, ~TensorGrid(stride, hw, _cells(rounded, stride), rounded).padding(sizes.device)[:, None]


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
