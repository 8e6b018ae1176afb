"""The head of CenterNet: heatmap, size and offset branches on one feature map."""

from collections.abc import Sequence

from torch import Tensor, nn

from centerx.predictions import CenterPredictions

# sigmoid(-2.19) = 0.1: a fresh heatmap says "probably nothing here", so that the many negatives do not dominate.
PRIOR_LOGIT = -2.19


class Branch(nn.Module):
    """conv3x3, ReLU, conv1x1."""

    def __init__(self, in_channels: int, hidden_channels: int, out_channels: int, *, bias: float = 0.0):
        super().__init__()
        self.hidden = nn.Conv2d(in_channels, hidden_channels, 3, padding=1)
        self.out = nn.Conv2d(hidden_channels, out_channels, 1)
        assert self.out.bias is not None
        nn.init.constant_(self.out.bias, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(x).relu())


class CenterHead(nn.Module):
    """Predicts ``CenterPredictions`` from one feature map.

    Args:
        in_channels: of the feature map.
        hidden_channels: between the two convolutions of each branch.
        num_classes: K.
        class_specific_size: one (width, height) per class instead of one for all.
        with_offset: without it centres are taken to lie in the middle of their cells.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        hidden_channels: int,
        num_classes: int,
        class_specific_size: bool = False,
        with_offset: bool = True,
    ):
        super().__init__()
        self.heatmap = Branch(in_channels, hidden_channels, num_classes, bias=PRIOR_LOGIT)
        self.size = Branch(in_channels, hidden_channels, 2 * num_classes if class_specific_size else 2)
        self.offset = Branch(in_channels, hidden_channels, 2, bias=0.5) if with_offset else None

    def forward(self, features: Sequence[Tensor]) -> CenterPredictions:
        """[(N, C, Hf, Wf)] -> predictions in float32, also under mixed precision."""
        (feature,) = features
        offset = None if self.offset is None else self.offset(feature)
        return CenterPredictions(self.heatmap(feature), self.size(feature), offset).each(Tensor.float)
