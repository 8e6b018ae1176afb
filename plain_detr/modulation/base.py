"""What a query's box adds to its attention: the interface of all modulations, one of which is a file here."""

from typing import NamedTuple

from torch import Tensor, nn


class AttentionBias(NamedTuple):
    """Bias of (query, key) logits: by axis, or for every pair; without any of the three there is none.

    Attributes:
        x: (N, heads, Q, Wf), together with ``y``.
        y: (N, heads, Q, Hf).
        full: (N, heads, Q, Hf * Wf), instead of the two.
    """

    x: Tensor | None = None
    y: Tensor | None = None
    full: Tensor | None = None


class Modulation(nn.Module):
    """Turns the boxes of queries into a bias of their attention to every cell of a map.

    A subclass that can gives the bias by axis (``x`` and ``y``): its cost then grows with Wf + Hf, and every way of
    computing attention in ``plain_detr.attention`` takes it. Its linear layers are initialised with the decoder's.
    """

    def forward(
        self, boxes_cxcywh: Tensor, hw: tuple[int, int], stride: int, queries: Tensor | None = None
    ) -> AttentionBias:
        """Bias of every query towards every cell, float32 also under autocast: offsets are hundreds of pixels.

        Args:
            boxes_cxcywh: (N, Q, 4), pixels of the padded input. Never over the image's size: a box knows no padding.
            hw: (Hf, Wf) of the map.
            stride: input pixels per cell.
            queries: (N, Q, C), position included, for a bias that also depends on what a query is about.
        """
        raise NotImplementedError

    def reset_parameters(self) -> None:
        """Called when the decoder has initialised its linear layers, those in here included."""
