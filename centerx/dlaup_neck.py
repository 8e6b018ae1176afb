"""DLAUp: deep layer aggregation as a neck, light enough for small machines through depth-wise convolutions."""

import math
from collections.abc import Mapping, Sequence

from detectron2.layers import ShapeSpec
from torch import Tensor, nn

from centerx.features import finest_first
from centerx.upsample_neck import make_conv, make_norm, make_projection, make_upsampler


class ConvNorm(nn.Sequential):
    """Convolution of a kind in ``CONVS``, norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, *, conv: str, norm: str):
        super().__init__(
            make_conv(conv, in_channels, out_channels), make_norm(norm, out_channels), nn.ReLU(inplace=True)
        )


class Aggregation(nn.Module):
    """Iterative deep aggregation (arXiv:1707.06484, figure 2c): finer and finer features take in coarser ones.

    Features i = 1, 2, ... are projected to ``out_channels``, up-sampled to the stride of feature 0, added to the result
    so far, and convolved.

    Args:
        in_channels: of the features, finest first.
        ratios: stride of each over that of the first; powers of two, the first is 1.
        out_channels: of every result. Feature 0 must have as many.
    """

    def __init__(self, in_channels: list[int], ratios: list[int], out_channels: int, *, conv: str, norm: str, up: dict):
        super().__init__()
        self.projections, self.upsamplers, self.nodes = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for channels, ratio in zip(in_channels[1:], ratios[1:]):
            self.projections.append(ConvNorm(channels, out_channels, conv=conv, norm=norm))
            steps = [make_upsampler(channels=out_channels, **up) for _ in range(round(math.log2(ratio)))]
            self.upsamplers.append(nn.Sequential(*steps))
            self.nodes.append(ConvNorm(out_channels, out_channels, conv=conv, norm=norm))

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Results 0 (feature 0 itself), 1, ...; all (N, ``out_channels``, H, W) of feature 0's size."""
        results = [features[0]]
        parts = zip(features[1:], self.projections, self.upsamplers, self.nodes)
        for feature, project, upsample, node in parts:
            results.append(node(results[-1] + upsample(project(feature))))
        return results


class DLAUpNeck(nn.Module):
    """All backbone features from the output stride on, aggregated to one (arXiv:1904.07850, fig. 6b).

    Every feature is first projected to its level's entry of ``channels``. Then, from the coarsest on, each
    level aggregates all coarser ones; the results at the levels' own strides are aggregated once more to the finest.

    With ``conv`` "separable" and ``up`` "depthwise" it has far fewer multiplications than ``UpsampleNeck``'s 3x3
    convolutions at the same width, while it uses the fine features of the backbone too.

    Args:
        input_shape: the backbone's ``output_shape()``, restricted to the features to use; one a stride, each stride
            the double of the one before, the finest equal to ``output_stride``.
        channels: of the levels, coarsest first; of a longer list the end counts, for a shorter one its first entry
            repeats, so that one setting serves backbones of any depth.

    Raises:
        ValueError: strides that do not double.
    """

    def __init__(
        self,
        input_shape: Mapping[str, ShapeSpec],
        *,
        output_stride: int = 4,
        channels: Sequence[int] = (256, 128, 64),
        conv: str = "separable",
        up: str = "depthwise",
        up_kernel: int = 4,
        up_init: str = "bilinear",
        norm: str = "BN",
    ):
        super().__init__()
        by_stride = {feature.stride: feature for feature in finest_first(input_shape)}  # of equal strides the last
        features = [feature for stride, feature in by_stride.items() if stride >= output_stride]
        levels = len(features)
        if levels < 2 or [feature.stride for feature in features] != [output_stride * 2**i for i in range(levels)]:
            raise ValueError(
                f"MODEL.CENTERNET.NECK.NAME dlaup needs backbone features at strides {output_stride},"
                f" {2 * output_stride}, ...; it has {list(by_stride)} (see MODEL.CENTERNET.IN_FEATURES)"
            )
        widths = [*reversed(channels), *[channels[0]] * levels][:levels]  # finest first from here on
        parts = {"conv": conv, "norm": norm, "up": {"kind": up, "kernel": up_kernel, "init": up_init}}
        self.in_features = [feature.name for feature in features]
        self.out_channels = widths[0]
        self.laterals = nn.ModuleList(
            make_projection(feature.channels, width, norm) for feature, width in zip(features, widths)
        )
        # Level i aggregates levels i, i + 1, ... whose features all have width i + 1 at stride i + 1 by then.
        self.pyramid = nn.ModuleList(
            Aggregation(
                [widths[level]] + [widths[level + 1]] * (levels - level - 1),
                [1] + [2] * (levels - level - 1),
                widths[level],
                **parts,
            )
            for level in range(levels - 1)
        )
        self.last = Aggregation(widths[:-1], [2**i for i in range(levels - 1)], widths[0], **parts)

    def forward(self, features: Mapping[str, Tensor]) -> Tensor:
        """Backbone features by name -> (N, ``out_channels``, Hf, Wf)."""
        levels = [lateral(features[name]) for name, lateral in zip(self.in_features, self.laterals)]
        coarser = [levels[-1]]
        results = []
        for level in reversed(range(len(self.pyramid))):
            coarser = self.pyramid[level]([levels[level], *coarser])
            results.insert(0, coarser[-1])
        return self.last(results)[-1]
