"""Random predictions and boxes, as a training step hands them to the criterion."""

import torch
from torch import Tensor

from plain_detr.box_coder import BOX_CODERS, BoxCoder
from plain_detr.predictions import BoxSetPrediction, SetTargets

SIDE = 512.0  # of the image, in pixels


def random_sets(
    coder: str, *, queries: int, extra: int, layers: int, counts: tuple[int, ...], classes: int = 5, cells: int = 30
) -> tuple[BoxCoder, list[BoxSetPrediction], BoxSetPrediction, SetTargets]:
    """Predictions of every layer and of the proposals, and the boxes of every image.

    Args:
        coder: "delta" or "sigmoid".
        queries, extra: of the one-to-one and of the one-to-many group.
        layers: of the decoder.
        counts: boxes of each image.
        classes: K.
        cells: proposals.
    """
    made = BOX_CODERS[coder]()
    extent = torch.tensor([SIDE, SIDE])
    sets = [_prediction(made, extent, len(counts), queries + extra, classes) for _ in range(layers)]
    proposals = _prediction(made, extent, len(counts), cells, classes)
    boxes = [made.from_pixels(_boxes(count), extent) for count in counts]
    labels = [torch.randint(0, classes, (count,)) for count in counts]
    return made, sets, proposals, SetTargets.pack(boxes, labels)


def _prediction(coder: BoxCoder, extent: Tensor, images: int, count: int, classes: int) -> BoxSetPrediction:
    reference = coder.from_pixels(_boxes(images * count).view(images, count, 4), extent)
    raw = (torch.randn(images, count, 4) * 0.1).requires_grad_()
    logits = (torch.randn(images, count, classes) - 3).requires_grad_()
    boxes = coder.decode(reference, raw, extent.expand(images, 1, 2))
    return BoxSetPrediction(logits, boxes, raw, reference)


def _boxes(count: int) -> Tensor:
    """(count, 4) (cx, cy, w, h) in pixels, inside the image."""
    size = 8 + torch.rand(count, 2) * SIDE / 2
    centre = size / 2 + torch.rand(count, 2) * (SIDE - size)
    return torch.cat([centre, size], dim=-1)
