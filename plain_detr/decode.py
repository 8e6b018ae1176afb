"""From the last layer's prediction to detections."""

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from plain_detr.box_coder import BoxCoder, cxcywh_to_xyxy
from plain_detr.padding import Size, sizes_wh
from plain_detr.predictions import BoxSetPrediction


def decode(
    prediction: BoxSetPrediction, image_sizes: Sequence[Size], *, coder: BoxCoder, topk: int, clip: bool = True
) -> list[Instances]:
    """The ``topk`` best (query, class) pairs of each image; a query may appear with several classes.

    Args:
        prediction: of the one-to-one queries.
        image_sizes: (height, width) of each image in pixels, without padding.
        coder: the space of boxes.
        topk: detections an image; all pairs where there are fewer.
        clip: to the image. The released code clips pixel boxes only.

    Returns:
        One ``Instances`` an image with ``pred_boxes`` (xyxy, pixels of the network input), ``scores`` descending in
        (0, 1), and ``pred_classes`` int64.
    """
    topk = min(topk, prediction.logits[0].numel())
    extent = sizes_wh(image_sizes, prediction.boxes.device)
    decoded = best_pairs(prediction, extent, coder=coder, topk=topk, clip=clip)
    return [
        Instances(size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
        for size, boxes, scores, classes in zip(image_sizes, *decoded)
    ]


def best_pairs(
    prediction: BoxSetPrediction, extent: Tensor, *, coder: BoxCoder, topk: int, clip: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    """``decode`` on tensors, which an exported graph holds as it is.

    Args:
        extent: (N, 1, 2), (width, height) of each image in pixels.
        topk: D, at most the pairs there are.

    Returns:
        Boxes (N, D, 4), scores (N, D) and classes (N, D).
    """
    num_classes = prediction.logits.shape[-1]
    scores, index = prediction.logits.float().sigmoid().flatten(1).topk(topk, dim=1)
    query = index // num_classes
    boxes = prediction.boxes.float().gather(1, query[..., None].expand(-1, -1, 4))
    boxes = cxcywh_to_xyxy(coder.to_pixels(boxes, extent))
    if clip:
        boxes = torch.minimum(boxes.clamp(min=0), extent.repeat(1, 1, 2))
    return boxes, scores, index - query * num_classes  # not %, which exporters make more of
