"""CenterNet as a graph from pixels to boxes, or to peak maps; see ``d2x.deploy``."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from centerx.centernet import CenterNet
from centerx.decode import keep_peaks, keep_peaks_without_equality, read_best_cells
from centerx.deform_conv import SelfDeformConv
from centerx.resize import test_resize
from d2x.deploy.graph import DetectionGraph, inside
from d2x.deploy.manifest import OUTPUTS, GraphFacts

FORMS = ("detections", "peaks", "heads")

__all__ = ["FORMS", "build_graph", "test_resize"]


def build_graph(model: CenterNet, form: str) -> DetectionGraph:
    """The graph of a detector in evaluation mode; it shares the detector's weights.

    Raises:
        ValueError: deformable convolutions, which few runtimes have.
    """
    if any(isinstance(module, SelfDeformConv) for module in model.modules()):
        raise ValueError(
            "deformable convolutions cannot be exported: train with MODEL.CENTERNET.NECK.CONV plain (or separable)"
        )
    return {"detections": CenterXDetections, "peaks": CenterXPeaks, "heads": CenterXHeads}[form](model)


class CenterXGraph(DetectionGraph):
    """What the forms share: the network and what the reader of its maps must know."""

    def __init__(self, model: CenterNet, form: str, *, with_sizes: bool):
        facts = GraphFacts(
            mean=model.pixel_mean.flatten().tolist(),
            std=model.pixel_std.flatten().tolist(),
            divisibility=max(model.backbone.size_divisibility, 1),
            max_detections=model.max_detections,
            stride=model.stride,
            min_score=model.min_score,
            clip=model.clip_boxes,
            centres_in_padding=model.centres_in_padding,
        )
        outputs = [name for name in OUTPUTS[form] if name != "reg" or model.head.offset is not None]
        square = model.backbone.padding_constraints.get("square_size", 0)
        super().__init__(facts, form=form, outputs=outputs, with_sizes=with_sizes, square=square)
        self.model = model

    def raw(self, *inputs: Tensor) -> Sequence[Tensor]:
        return [part for part in self.model.predict(self.normalise(*inputs)) if part is not None]

    def half_parts(self) -> list[nn.Module]:
        return [self.model.backbone, self.model.head]

    def float_layers(self) -> list[str]:
        # In int8 the scores around a centre would be equal, and all of them peaks.
        return [f"model.head.{name}.out" for name, branch in self.model.head.named_children() if branch is not None]


class CenterXDetections(CenterXGraph):
    """Form "detections": everything up to the best ``max_detections`` boxes of each image."""

    def __init__(self, model: CenterNet):
        super().__init__(model, "detections", with_sizes=True)
        # Rows of empty cells, so that also the maps of the smallest input have max_detections entries.
        side = -(-self.facts.divisibility // self.facts.stride)
        self.filler_rows = max(0, -(-self.facts.max_detections // (model.num_classes * side)) - side)

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See ``DetectionGraph``; gives boxes (N, D, 4), scores (N, D), classes (N, D)."""
        maps = self.model.predict(self.normalise(images, sizes))
        heat = maps.heatmap_logits.sigmoid()
        if not self.facts.centres_in_padding:
            heat = heat * inside(heat.shape[2:], self.facts.stride, sizes)
        maps = maps._replace(heatmap_logits=keep_peaks(heat)).each(lambda m: F.pad(m, (0, 0, 0, self.filler_rows)))
        best = read_best_cells(maps.heatmap_logits, maps.size, maps.offset, self.facts.max_detections)
        boxes = best.boxes * self.facts.stride
        if self.facts.clip:
            limit = sizes.flip(1).repeat(1, 2)[:, None].to(boxes.dtype)
            boxes = torch.minimum(boxes.clamp(min=0), limit)
        return boxes, best.scores, best.classes


class CenterXPeaks(CenterXGraph):
    """Form "peaks", as released: a heatmap that is zero but at peaks, by layers that every runtime has."""

    def __init__(self, model: CenterNet):
        super().__init__(model, "peaks", with_sizes=False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See ``DetectionGraph``; gives heat, reg (if the model predicts offsets) and wh."""
        maps = self.model.predict(self.normalise(images))
        heat = keep_peaks_without_equality(maps.heatmap_logits.sigmoid())
        return tuple(part for part in (heat, maps.offset, maps.size) if part is not None)


class CenterXHeads(CenterXGraph):
    """Form "heads": the heatmap and its 3x3 maximum, compared by the reader: exact in any precision."""

    def __init__(self, model: CenterNet):
        super().__init__(model, "heads", with_sizes=False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """See ``DetectionGraph``; gives heat, pooled, reg (if the model predicts offsets) and wh."""
        maps = self.model.predict(self.normalise(images))
        heat = maps.heatmap_logits.sigmoid()
        pooled = F.max_pool2d(heat, 3, stride=1, padding=1)
        return tuple(part for part in (heat, pooled, maps.offset, maps.size) if part is not None)
