"""A 3x3 deformable convolution that makes its own offsets (torchvision's operator, which also runs on a CPU)."""

from torch import Tensor, nn
from torchvision.ops import DeformConv2d


class SelfDeformConv(nn.Module):
    """Deformable convolution, version 1 (arXiv:1703.06211) or modulated, version 2 (arXiv:1811.11168).

    A plain 3x3 convolution, zero at the start, gives per tap k the shift (dy, dx) in channels 2k and 2k + 1 and, when
    modulated, the logit of its weight in channel 18 + k. Only the modulated form has a bias, as in the released code.
    """

    def __init__(self, in_channels: int, out_channels: int, *, modulated: bool = True):
        super().__init__()
        self.modulated = modulated
        self.offset = nn.Conv2d(in_channels, 27 if modulated else 18, 3, padding=1)
        for parameter in self.offset.parameters():
            nn.init.zeros_(parameter)
        self.deform = DeformConv2d(in_channels, out_channels, 3, padding=1, bias=modulated)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C_in, H, W) -> (N, C_out, H, W)."""
        offset = self.offset(x)
        if not self.modulated:
            return self.deform(x, offset)
        return self.deform(x, offset[:, :18], offset[:, 18:].sigmoid())
