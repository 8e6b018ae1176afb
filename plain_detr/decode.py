"""From the last layer's prediction to detections."""

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances

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
    scores = prediction.logits.float().sigmoid().flatten(1)
    num_classes = prediction.logits.shape[-1]
    scores, index = scores.topk(min(topk, scores.shape[1]), dim=1)
    query, classes = index.div(num_classes, rounding_mode="floor"), index % num_classes
    boxes = prediction.boxes.float().gather(1, query[..., None].expand(-1, -1, 4))
    extent = sizes_wh(image_sizes, boxes.device)
    boxes = cxcywh_to_xyxy(coder.to_pixels(boxes, extent))
    if clip:
        boxes = torch.minimum(boxes.clamp(min=0), torch.cat([extent, extent], dim=-1))
    return [
        Instances(tuple(size), pred_boxes=Boxes(one), scores=score, pred_classes=label)
        for size, one, score, label in zip(image_sizes, boxes, scores, classes)
    ]
