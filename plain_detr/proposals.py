"""Two-stage queries: score one anchor on every cell of several levels, keep the best, and make queries of them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plain_detr.box_coder import BoxCoder
from plain_detr.padding import FeatureGrid, resized_hw, size_of
from plain_detr.position_encoding import box_code
from plain_detr.prediction_head import PredictionHead
from plain_detr.predictions import BoxSetPrediction
from plain_detr.rescale import rescale


class ProposalSelection(NamedTuple):
    """What the proposal stage found.

    Attributes:
        reference: (N, Q, 4), coder space, best first, detached.
        index: (N, Q) int64 positions among all S anchors; S or more where the image had fewer than Q to offer.
        extent: (N, 1, 2), the valid (width, height) in pixels for every later call of the coder.
        prediction: all S anchors with their predictions; None when not asked for.
    """

    reference: Tensor
    index: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  tuples have a method of that name
    extent: Tensor
    prediction: BoxSetPrediction | None


class Proposals(nn.Module):
    """Expand one map to several levels, predict a score and a box on every cell, select Q boxes an image.

    The score is the logit of class channel 0, for in training every box counts as class 0 here; or, ``class_aware``,
    the largest of all classes.

    Args:
        hidden_dim: C.
        stride: of the map that comes in.
        strides: of the levels.
        head: the head; unless ``class_aware`` its other class channels are unused.
        coder: the space of boxes.
        valid_area: "image" or "nearest", see ``plain_detr.padding``.
        keep_invalid: True is the released behaviour: anchors on padding or near the border take part in selection
            and loss, on zeroed features, so the result depends on the padding. False leaves them out; an image with
            fewer than Q valid anchors fills up with the box of the whole image.
        class_aware: True is DINO's way (Zhang et al., ICLR 2023): the map learns classes from every cell, which pays
            where the backbone starts from nothing. False is the released one.
    """

    def __init__(
        self,
        *,
        hidden_dim: int,
        stride: int,
        strides: Sequence[int],
        head: PredictionHead,
        coder: BoxCoder,
        valid_area: str = "image",
        keep_invalid: bool = False,
        class_aware: bool = False,
    ):
        super().__init__()
        self.stride, self.strides = stride, list(strides)
        self.coder, self.valid_area, self.keep_invalid = coder, valid_area, keep_invalid
        self.class_aware = class_aware
        self.levels = nn.ModuleList(rescale(hidden_dim, stride, target) for target in strides)
        self.output = nn.Linear(hidden_dim, hidden_dim)
        self.output_norm = nn.LayerNorm(hidden_dim)
        self.head = head
        for parameter in (*self.levels.parameters(), self.output.weight):
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(
        self, memory: Tensor, grid: FeatureGrid, num_queries: int, *, all_predictions: bool
    ) -> ProposalSelection:
        """Propose.

        Args:
            memory: (N, C, Hf, Wf).
            grid: of that map.
            num_queries: Q.
            all_predictions: whether the predictions of all anchors are wanted (for the loss).
        """
        tokens, levels = self.expand(memory, grid)
        anchors, valid = self.coder.anchors(levels, memory.device)
        extent = self.coder.extent(grid, levels, memory.device)
        if self.keep_invalid:
            anchors = anchors.masked_fill(~valid[..., None], self.coder.released_invalid_anchors(levels))
        tokens = self.output_norm(self.output(tokens.masked_fill(~valid[..., None], 0)))
        if all_predictions:
            logits, raw = self.head(tokens)
            boxes = self._decode(anchors, raw, extent, valid)
            prediction = BoxSetPrediction(logits, boxes, raw, anchors, None if self.keep_invalid else valid)
            score, index = self._select(logits, valid, num_queries)
            reference = _gather(boxes, index)
        else:
            prediction = None
            classifier = self.head.class_logits
            used = slice(None) if self.class_aware else slice(1)
            logits = F.linear(tokens, classifier.weight[used], classifier.bias[used]).float()
            score, index = self._select(logits, valid, num_queries)
            raw = self.head.raw_box(_gather(tokens, index)).float()
            reference = self._decode(_gather(anchors, index), raw, extent, _gather(valid[..., None], index)[..., 0])
        missing = score.isneginf()[..., None]
        reference = torch.where(missing, self.coder.whole_image(extent), reference).detach()
        return ProposalSelection(reference, index, extent, prediction)

    def expand(self, memory: Tensor, grid: FeatureGrid) -> tuple[Tensor, list[FeatureGrid]]:
        """(N, S, C) tokens of all levels, one after the other, and the grid of each level."""
        if self.valid_area == "image":  # then no level may lose its last row, so the map is padded to halve evenly
            multiple = max(1, max(self.strides) // self.stride)
            height, width = grid.hw
            memory = F.pad(memory, (0, _surplus(width, multiple), 0, _surplus(height, multiple)))
        tokens, levels = [], []
        for stride, convolutions in zip(self.strides, self.levels):
            hw = resized_hw(size_of(memory), self.stride, stride)
            if not all(hw):  # the map is smaller than one cell of this level
                continue
            level = convolutions(memory)
            tokens.append(level.flatten(2).transpose(1, 2))
            levels.append(grid.level(stride, size_of(level), self.valid_area))
        return torch.cat(tokens, dim=1), levels

    def _decode(self, anchors: Tensor, raw: Tensor, extent: Tensor, valid: Tensor) -> Tensor:
        boxes = self.coder.decode(anchors, raw, extent)
        if self.keep_invalid:
            boxes = torch.where(valid[..., None], boxes, self.coder.released_invalid_boxes(boxes))
        return boxes

    def _select(self, logits: Tensor, valid: Tensor, num_queries: int) -> tuple[Tensor, Tensor]:
        score = logits.detach().amax(-1) if self.class_aware else logits.detach()[..., 0]
        if not self.keep_invalid:
            score = score.masked_fill(~valid, float("-inf"))
        # An exported graph of any size cannot ask whether its map has enough anchors.
        if torch.compiler.is_exporting() or score.shape[1] < num_queries:
            score = F.pad(score, (0, num_queries), value=float("-inf"))
        return score.topk(num_queries, dim=1)


def _surplus(side: int, multiple: int) -> int:
    """Cells to add to a side so that halving loses none that holds image.

    An exported graph of any size adds a number that does not depend on the size; what is too much is not valid.
    """
    return multiple - 1 if torch.compiler.is_exporting() else -side % multiple


def _gather(rows: Tensor, index: Tensor) -> Tensor:
    """rows (N, S, D) at index (N, Q) -> (N, Q, D); an index past the end takes the last row."""
    index = index.clamp(max=rows.shape[1] - 1)
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[-1]))


class QueryInitializer(nn.Module):
    """Position and content of every query, from the box of its proposal.

    With *mixed selection* (Zhang et al., DINO, section 3.4) only the position follows the box; the content is learned,
    one vector for each rank of the proposals. Without it both come from the box.

    Args:
        hidden_dim: C.
        num_queries: ranks with a learned content: of both groups together.
        mixed_selection: see above.
    """

    def __init__(self, *, hidden_dim: int, num_queries: int, mixed_selection: bool = True):
        super().__init__()
        self.hidden_dim = hidden_dim
        self.from_box = nn.Linear(2 * hidden_dim, 2 * hidden_dim)
        self.from_box_norm = nn.LayerNorm(2 * hidden_dim)
        self.content = nn.Embedding(num_queries, hidden_dim) if mixed_selection else None
        nn.init.xavier_uniform_(self.from_box.weight)

    def forward(self, reference: Tensor) -> tuple[Tensor, Tensor]:
        """(N, Q, 4) boxes in coder space, best first -> content (N, Q, C) and position (N, Q, C)."""
        code = box_code(reference, 2 * self.hidden_dim)
        position, content = self.from_box_norm(self.from_box(code)).chunk(2, dim=-1)
        if self.content is not None:
            content = self.content.weight[: reference.shape[1]].expand(reference.shape[0], -1, -1)
        return content, position
