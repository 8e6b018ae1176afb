"""What the backbones here share: outputs named for their stride, and construction from a config node."""

from collections.abc import Mapping, Sequence

from detectron2.config import CfgNode
from detectron2.modeling import Backbone
from torch import Tensor


class ImageBackbone(Backbone):
    """detectron2's interface, whose ``forward`` names no argument, with the images as its one argument."""

    _out_features: list[str]
    _out_feature_channels: dict[str, int]
    _out_feature_strides: dict[str, int]

    def forward(self, images: Tensor) -> dict[str, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """(N, 3, H, W), normalised -> ``{name: (N, C, ~H / stride, ~W / stride)}``."""
        raise NotImplementedError

    def _set_outputs(
        self, key: str, wanted: Sequence[str], channels: Sequence[int], strides: Sequence[int], *, letter: str = "res"
    ) -> list[str]:
        """Declare the outputs "res2", "res3", ... (with another ``letter`` "p2", ...) and return all their names.

        Raises:
            ValueError: none or an unknown one is ``wanted``; the message starts with the config ``key``.
        """
        names = [f"{letter}{i + 2}" for i in range(len(channels))]
        if not wanted or set(wanted) - set(names):
            raise ValueError(f"{key} {list(wanted)} must be among {', '.join(names)}")
        self._out_features = [name for name in names if name in wanted]
        self._out_feature_channels = dict(zip(names, channels))
        self._out_feature_strides = dict(zip(names, strides))
        return names


class StagedBackbone(ImageBackbone):
    """A stem and stages "res2", "res3", ... in turn; stages after the last output wanted are not built.

    Attributes:
        stem_names: modules of the stem.
        stage_names: module of every stage.
    """

    stem_names: tuple[str, ...]
    stage_names: tuple[str, ...]

    def _set_stages(self, key: str, wanted: Sequence[str], channels: Sequence[int], *, stride: int = 4) -> None:
        """Declare stages of these channels, the first at ``stride``, each next one at twice the one before."""
        names = self._set_outputs(key, wanted, channels, [stride * 2**i for i in range(len(channels))])
        self._stages: Mapping[str, str] = dict(zip(names[: 1 + names.index(self._out_features[-1])], self.stage_names))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W) of any size -> ``{name: (N, C, ceil(H / stride), ceil(W / stride))}``."""
        x, outputs = images, {}
        for name in self.stem_names:
            x = self.get_submodule(name)(x)
        for name, stage in self._stages.items():
            x = self.get_submodule(stage)(x)
            if name in self._out_features:
                outputs[name] = x
        return outputs


def arguments(node: CfgNode, **renamed: str) -> dict:
    """A config node as arguments of its backbone's constructor: the keys in lower case, or as ``renamed``."""
    # As attributes, which counts as reading them (d2x.config.unread).
    return {renamed.get(key, key.lower()): getattr(node, key) for key in node}
