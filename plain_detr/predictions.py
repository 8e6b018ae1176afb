"""What the parts of Plain-DETR hand each other. Shapes, spaces and units are written here, once.

Shape shorthand in this package: N images, Q queries (or proposals), K classes, T boxes in all images of a batch
together, C channels, (Hf, Wf) cells of a feature map, L = Hf * Wf tokens.

*Coder space* is the space a ``BoxCoder`` works in: (cx, cy, w, h), either over the image's own width and height
(``SigmoidCoder``) or in pixels of the network input (``DeltaCoder``).
"""

from typing import NamedTuple

import torch
from torch import Tensor


class BoxSetPrediction(NamedTuple):
    """One set of scored boxes: of a decoder layer, or of the proposal stage.

    Attributes:
        logits: (N, Q, K), before the sigmoid.
        boxes: (N, Q, 4), coder space.
        raw: (N, Q, 4), what the box head emitted, no unit.
        reference: (N, Q, 4), coder space: the boxes that ``raw`` refines.
        valid: (N, Q) bool, False where the row must be neither matched nor scored; None means all True.
    """

    logits: Tensor
    boxes: Tensor
    raw: Tensor
    reference: Tensor
    valid: Tensor | None = None

    def split(self, first: int) -> tuple["BoxSetPrediction", "BoxSetPrediction"]:
        """The first ``first`` queries, and the rest."""
        head, tail = zip(*((None, None) if part is None else (part[:, :first], part[:, first:]) for part in self))
        return BoxSetPrediction(*head), BoxSetPrediction(*tail)


class SetTargets(NamedTuple):
    """The ground truth of a batch, packed: the boxes of all images in one list.

    Attributes:
        boxes: (T, 4), coder space.
        classes: (T,) int64 in [0, K).
        image: (T,) int64, the image each box belongs to, ascending.
        counts: boxes of each image; they sum to T.
        labelled: (N, K) bool, False for classes the image's data set is not labelled for; None means all True.
    """

    boxes: Tensor
    classes: Tensor
    image: Tensor
    counts: list[int]
    labelled: Tensor | None = None

    @classmethod
    def pack(cls, boxes: list[Tensor], classes: list[Tensor], labelled: Tensor | None = None) -> "SetTargets":
        """From one (M, 4) box tensor (coder space) and one (M,) class tensor an image."""
        counts = [len(of_image) for of_image in boxes]
        packed = torch.cat(boxes)
        image = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)).to(packed.device)
        return cls(packed, torch.cat(classes), image, counts, labelled)

    def with_classes_merged(self) -> "SetTargets":
        """The same boxes, all of class 0: how proposals are supervised."""
        return self._replace(classes=torch.zeros_like(self.classes), labelled=None)


class Matches(NamedTuple):
    """Pairs found by the matcher for one set of predictions; three (P,) int64 tensors.

    Attributes:
        image: index of the image in the batch.
        query: index of the prediction in that image.
        target: index of the box in the packed ``SetTargets``.
    """

    image: Tensor
    query: Tensor
    target: Tensor
