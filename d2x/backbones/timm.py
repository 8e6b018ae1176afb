"""Any timm model with ``features_only`` as a detectron2 backbone."""

import logging
import math
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from typing import Any

import timm
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from timm.layers.norm_act import convert_sync_batchnorm, freeze_batch_norm_2d
from torch import Tensor, nn

from d2x.backbones.base import ImageBackbone, arguments
from d2x.backbones.weights import load_backbone_weights

logger = logging.getLogger(__name__)

# Arguments with which timm's models of a fixed image size take any; each family knows at most one of them.
_ANY_SIZE = ({"dynamic_img_size": True}, {"strict_img_size": False}, {})


class TimmBackbone(ImageBackbone):
    """A timm feature extractor, by name; its outputs, their channels and strides are what timm says they are.

    An output is named for its stride as in detectron2's ResNet: "res2" at stride 4 to "res5" at stride 32, "res1" at
    stride 2; "stride14" where the stride is no power of 2. Of several outputs of one stride (a ViT has only such) the
    last has the plain name, the others are "res4_0", "res4_1" in their order.

    Args:
        name: as in ``timm.list_models()``, e.g. "resnet18", "convnext_tiny", "regnety_004", "vit_small_patch16_224".
        out_indices: which of timm's features, negative from the end; empty: those timm gives by default.
        weights: a file as ``MODEL.BACKBONE.WEIGHTS`` takes, read when the model is built.
        pretrained: timm's own weights, from its cache or the network; not with ``weights``.
        drop_path_rate: stochastic depth of the last block; 0 for the model's default.
        norm: "" leaves the batch norms as they are; "FrozenBN" fixes statistics and affine part; "SyncBN".

    Outputs: ``{name: (N, C, ~H / stride, ~W / stride)}`` of (N, 3, H, W) with H and W multiples of the divisibility.

    Raises:
        ValueError: no such model, none with features, an index out of range, pre-trained weights that cannot be had, or
            a file that holds another model's.
        FileNotFoundError: ``weights`` does not exist.
    """

    def __init__(
        self,
        *,
        name: str,
        out_indices: Sequence[int] = (),
        weights: str = "",
        pretrained: bool = False,
        drop_path_rate: float = 0.0,
        norm: str = "",
    ):
        super().__init__()
        if not timm.is_model(name):
            near = timm.list_models(f"*{name.split('.')[0][:8]}*")[:3]
            hint = f"; there are {', '.join(near)}" if near else ""
            raise ValueError(f"MODEL.TIMM.NAME: timm {timm.__version__} has no model '{name}'{hint}")
        if norm not in ("", "FrozenBN", "SyncBN"):
            raise ValueError(f"MODEL.TIMM.NORM '{norm}' must be empty, FrozenBN or SyncBN")
        if weights and pretrained:
            raise ValueError("MODEL.TIMM.PRETRAINED and MODEL.TIMM.WEIGHTS: set one of them, not both")
        options: dict = {"out_indices": tuple(out_indices)} if out_indices else {}
        if drop_path_rate:
            options["drop_path_rate"] = drop_path_rate
        self.name = name
        model: Any = _with_download(name, options) if pretrained else _create(name, options)
        if norm == "FrozenBN":
            model = freeze_batch_norm_2d(model)
        elif norm == "SyncBN":
            model = convert_sync_batchnorm(model)
        self.model = model
        self._channels_last = str(getattr(model, "output_fmt", "NCHW")).upper().endswith("NHWC")
        strides, channels = model.feature_info.reduction(), model.feature_info.channels()
        names = _output_names(strides)
        self._out_features = names
        self._out_feature_strides = dict(zip(names, strides))
        self._out_feature_channels = dict(zip(names, channels))
        self._divisibility = math.lcm(*strides)
        if weights:
            load_backbone_weights(self, weights, key="MODEL.TIMM.WEIGHTS")

    @property
    def size_divisibility(self) -> int:
        return self._divisibility

    def extra_repr(self) -> str:
        return self.name

    def from_release(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """timm's names for the original release of this architecture."""
        return from_release(timm.create_model(self.name, num_classes=0), state)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(N, 3, H, W), normalised -> see the class."""
        try:
            features = self.model(images)
        except AssertionError as error:  # how timm refuses a size that the model cannot take
            height, width = images.shape[-2:]
            raise ValueError(
                f"MODEL.TIMM.NAME: this model takes no images of {width} x {height} px: {error}"
            ) from error
        if self._channels_last:
            features = [feature.permute(0, 3, 1, 2).contiguous() for feature in features]
        return dict(zip(self._out_features, features))


def _output_names(strides: Sequence[int]) -> list[str]:
    total, seen, names = Counter(strides), Counter(), []
    for stride in strides:
        power = stride.bit_length() - 1
        name = f"res{power}" if stride == 1 << power else f"stride{stride}"
        names.append(name if seen[stride] == total[stride] - 1 else f"{name}_{seen[stride]}")
        seen[stride] += 1
    return names


def _create(name: str, options: dict, **loading) -> nn.Module:
    """A timm feature extractor for images of any size; ``TypeError`` stands for an unknown argument."""
    unknown = TypeError(name)
    for any_size in _ANY_SIZE:
        try:
            return timm.create_model(name, features_only=True, **any_size, **options, **loading)
        except TypeError as error:
            if "unexpected keyword argument" not in str(error):
                raise
            unknown = error
        except (AssertionError, IndexError, ValueError) as error:
            if not options.get("out_indices"):
                raise
            raise ValueError(
                f"MODEL.TIMM.OUT_INDICES {list(options['out_indices'])}: '{name}' has no such features ({error})"
            ) from error
        except (RuntimeError, AttributeError, NotImplementedError) as error:
            if loading:
                raise
            raise ValueError(f"MODEL.TIMM.NAME: '{name}' has no features for a detector ({_line(error)})") from error
    if "drop_path_rate" in options and "drop_path_rate" in str(unknown):
        raise ValueError(f"MODEL.TIMM.DROP_PATH: '{name}' has no stochastic depth") from unknown
    raise ValueError(f"MODEL.TIMM.NAME: '{name}' has no features for a detector ({_line(unknown)})") from unknown


def _with_download(name: str, options: dict) -> nn.Module:
    _create(name, options)  # so that what fails below is the download
    logger.info("Fetching timm's weights for %s, unless they are in the local cache", name)
    try:
        return _create(name, options, pretrained=True)
    except Exception as error:  # each transport has errors of its own: OSError, httpx's, the hub's, timm's RuntimeError
        known = timm.get_pretrained_cfg(name)
        source = (known.hf_hub_id or known.url) if known else ""
        where = f" of {str(source).rstrip('/')}" if source else ""
        raise ValueError(
            f"MODEL.TIMM.PRETRAINED: no pre-trained weights for '{name}': not in the local cache, and the download"
            f" failed ({_line(error)}). Without a network, fetch the file{where} elsewhere and set MODEL.TIMM.WEIGHTS"
            " to its path (.safetensors or .pth), or set MODEL.TIMM.PRETRAINED False to start from random weights"
        ) from error


def from_release(model: nn.Module, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """timm's names and shapes for the original release of a timm model; {} where its family has no converter."""
    module = sys.modules[type(model).__module__]
    convert = getattr(module, "checkpoint_filter_fn", None) or getattr(module, "_filter_fn", None)
    return convert(state, model) if convert else {}


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {textwrap.shorten(str(error), 160, placeholder=' ...')}"


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec | None = None) -> TimmBackbone:
    """``MODEL.BACKBONE.NAME`` "build_timm_backbone"; settings from ``MODEL.TIMM``."""
    options = arguments(cfg.MODEL.TIMM, DROP_PATH="drop_path_rate")
    if cfg.MODEL.WEIGHTS:  # a whole detector's, which replaces these: a machine without them can still use it
        options |= {"weights": "", "pretrained": False}
    return TimmBackbone(**options)


def add_timm_config(cfg: CfgNode) -> None:
    """Declare ``MODEL.TIMM.*``."""
    cfg.MODEL.TIMM = CfgNode()
    cfg.MODEL.TIMM.NAME = "resnet18"  # as in timm.list_models()
    # timm's own weights, from its cache or the network. Neither they nor WEIGHTS are read when MODEL.WEIGHTS is set.
    cfg.MODEL.TIMM.PRETRAINED = False
    cfg.MODEL.TIMM.WEIGHTS = ""  # the same from a local .safetensors, .pth or .bin file
    cfg.MODEL.TIMM.OUT_INDICES = []  # which of timm's features, negative from the end; empty: timm's default
    cfg.MODEL.TIMM.DROP_PATH = 0.0  # stochastic depth of the last block; 0: the model's default
    cfg.MODEL.TIMM.NORM = ""  # of the batch norms: "" as they are, "FrozenBN", "SyncBN"
