"""From annotated images to the packed ground truth of a batch."""

import torch
from torch import Tensor

from plain_detr.box_coder import BoxCoder, xyxy_to_cxcywh
from plain_detr.padding import Size
from plain_detr.predictions import SetTargets


def pack_targets(
    batched_inputs: list[dict], sizes: list[Size], *, num_classes: int, coder: BoxCoder, device: torch.device
) -> SetTargets:
    """Boxes clipped to their image, those without area dropped. The batch is left as it is.

    Args:
        batched_inputs: dicts with ``instances`` (``gt_boxes`` xyxy in pixels, ``gt_classes``) and optionally
            ``labelled_classes``.
        sizes: (height, width) of each image.
        num_classes: K.
        coder: the space the boxes are written in.

    Raises:
        ValueError: a box is not finite, or a class outside [0, K); names the image.
    """
    boxes, classes, labelled = [], [], []
    for record, (height, width) in zip(batched_inputs, sizes):
        corners, labels = _checked(record, num_classes)
        limit = corners.new_tensor([width, height, width, height])
        corners = torch.minimum(corners.clamp(min=0), limit)
        keep = (corners[:, 2:] > corners[:, :2]).all(-1)
        boxes.append(coder.from_pixels(xyxy_to_cxcywh(corners[keep]), limit[:2]).to(device))
        classes.append(labels[keep].to(device))
        labelled.append(_labelled(record, num_classes))
    mask = torch.stack(labelled)
    return SetTargets.pack(boxes, classes, None if mask.all() else mask.to(device))


def image_name(record: dict) -> str:
    """What an error calls the image."""
    return str(record.get("file_name", "an image of the batch"))


def _checked(record: dict, num_classes: int) -> tuple[Tensor, Tensor]:
    instances = record["instances"]
    corners, labels = instances.gt_boxes.tensor.float(), instances.gt_classes
    if not corners.isfinite().all():
        raise ValueError(f"{image_name(record)}: a box is not finite")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < num_classes:
        raise ValueError(
            f"{image_name(record)}: classes {int(labels.min())} to {int(labels.max())}, but the model has"
            f" {num_classes} (MODEL.PLAIN_DETR.NUM_CLASSES)"
        )
    return corners, labels


def _labelled(record: dict, num_classes: int) -> Tensor:
    if record.get("labelled_classes") is None:
        return torch.ones(num_classes, dtype=torch.bool)
    mine = torch.zeros(num_classes, dtype=torch.bool)
    mine[record["labelled_classes"].cpu()] = True
    return mine
