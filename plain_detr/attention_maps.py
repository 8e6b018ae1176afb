"""Pictures of where queries look, with and without the bias by box (the paper's figure 4)."""

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor

from plain_detr.box_coder import cxcywh_to_xyxy
from plain_detr.plain_detr import PlainDETR

# Of the map over the image.
OPACITY = 0.6


class QueryAttention(NamedTuple):
    """What some queries found and where they looked.

    Attributes:
        query: (n,) int64, indices of the one-to-one queries.
        boxes: (n, 4) xyxy, pixels of the network input.
        scores, classes: (n,), the best class of each.
        with_bias, without_bias: (n, Hf, Wf), attention averaged over the heads; each map sums to 1.
        stride: input pixels per cell.
    """

    query: Tensor
    boxes: Tensor
    scores: Tensor
    classes: Tensor
    with_bias: Tensor
    without_bias: Tensor
    stride: int


@torch.no_grad()
def query_attention(
    model: PlainDETR, image: Tensor, *, queries: Sequence[int] = (), count: int = 4, layer: int = -1
) -> QueryAttention:
    """Attention of chosen queries in one image.

    Args:
        model: the detector, in evaluation mode.
        image: (3, h, w) in the images' own unit.
        queries: indices; when empty, the ``count`` queries with the best scores.
        layer: index of the decoder layer whose cross-attention is shown. Boxes and scores are always the last layer's.

    Raises:
        ValueError: a query or layer the model does not have.
    """
    layers, _ = model.predict(model.encode([model.normalized(image)]), training=False)
    last, depth = layers[-1], len(layers)
    if not -depth <= layer < depth:
        raise ValueError(f"decoder layer {layer}: the model has {depth} (0 to {depth - 1})")
    scores, classes = last.logits[0].sigmoid().max(-1)
    total = len(scores)
    if any(not 0 <= query < total for query in queries):
        raise ValueError(f"queries {list(queries)}: the model has {total} (0 to {total - 1})")
    index = torch.as_tensor(list(queries), device=scores.device) if queries else scores.topk(min(count, total)).indices
    with_bias, without_bias = (
        model.attention_weights(image, layer=layer, with_bias=bias)[:, index].mean(0).cpu() for bias in (True, False)
    )
    height, width = image.shape[1:]
    extent = scores.new_tensor([width, height])
    boxes = cxcywh_to_xyxy(model.coder.to_pixels(last.boxes[0, index], extent))
    boxes = torch.minimum(boxes.clamp(min=0), extent.repeat(2))
    index, boxes, scores, classes = (part.cpu() for part in (index, boxes, scores[index], classes[index]))
    return QueryAttention(index, boxes, scores, classes, with_bias, without_bias, model.proposals.stride)


def draw_attention(image: np.ndarray, attention: Tensor, box: Tensor, *, stride: int, scale: float = 1.0) -> np.ndarray:
    """One map over its image, with the query's box.

    Args:
        image: (h, w, 3) uint8 RGB, as the network saw it.
        attention: (Hf, Wf); the colours span 0 to its largest value.
        box: (4,) xyxy, pixels of ``image``.
        stride: input pixels per cell.
        scale: of the picture that comes out.

    Returns:
        uint8 RGB.
    """
    height, width = image.shape[:2]
    heat = attention.numpy() / max(float(attention.max()), 1e-12)
    # A cell's value belongs to its centre, so the map is stretched by the stride and cut, never squeezed to the image.
    heat = cv2.resize(heat, None, fx=stride, fy=stride, interpolation=cv2.INTER_LINEAR)[:height, :width]
    colours = cv2.applyColorMap((255 * heat).round().astype(np.uint8), cv2.COLORMAP_JET)[..., ::-1]
    grey = image.mean(-1, keepdims=True)  # the colours are the map's alone
    mixed = (1 - OPACITY) * grey + OPACITY * colours
    return draw_box(mixed.round().astype(np.uint8), box, scale=scale)


def draw_box(image: np.ndarray, box: Tensor, *, scale: float = 1.0) -> np.ndarray:
    """A copy of an RGB picture, ``scale`` times as large, with one box (xyxy, pixels of ``image``)."""
    picture = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR)
    x0, y0, x1, y1 = (round(float(side) * scale) for side in box)
    return cv2.rectangle(np.ascontiguousarray(picture), (x0, y0), (x1, y1), (255, 255, 255), 2)
