"""Pre-trained weights for a backbone from a local file of any common origin, with a report of what went where.

Known origins: SimMIM and supervised Swin V1 / V2 files, MAE (plain ViT), DINOv3 and other timm ViTs, torchvision and
timm ResNets, and a detector checkpoint of this project (its ``backbone.`` part).
"""

import logging
import math
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.modeling.backbone.resnet import ResNet
from detectron2.modeling.backbone.swin import SwinTransformer
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import Tensor, nn

from d2x.engine.checkpoint import read_checkpoint
from plain_detr.swin_v2 import SwinV2
from plain_detr.timm_vit import TimmViT
from plain_detr.vit import PlainViT

logger = logging.getLogger(__name__)

# Follow from a model's own window sizes, so a file's version of them is never taken.
_DERIVED = ("relative_coords_table", "relative_position_index", "attn_mask", "num_batches_tracked")


@dataclass
class LoadReport:
    """What a weight file gave to a backbone. Names are the backbone's, except in ``left_out``.

    Attributes:
        matched: taken under the name they have in the file.
        renamed: name here -> name in the file.
        interpolated: name here -> "(shape in the file) -> (shape here)".
        left_out: names in the file that were not used.
        missing: names of the backbone that the file does not have; they keep their initial values.
    """

    path: str
    matched: list[str] = field(default_factory=list)
    renamed: dict[str, str] = field(default_factory=dict)
    interpolated: dict[str, str] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        renamed = next((f", e.g. {theirs} -> {ours}" for ours, theirs in self.renamed.items()), "")
        lines = [
            f"{self.path}: {len(self.matched)} tensors matched, {len(self.renamed)} renamed{renamed}",
            f"interpolated ({len(self.interpolated)}): "
            + ", ".join(f"{name} {change}" for name, change in self.interpolated.items()),
            f"left out of the file ({len(self.left_out)}): " + ", ".join(self.left_out),
            f"not in the file, kept as initialised ({len(self.missing)}): " + ", ".join(self.missing),
        ]
        return "\n  ".join(lines)


def load_backbone_weights(backbone: nn.Module, path: str) -> LoadReport:
    """Load a weight file into a backbone, in place, and log the report.

    Args:
        backbone: :class:`SwinV2`, Swin V1, :class:`PlainViT`, :class:`TimmViT`, detectron2's ResNet, or any module
            whose own names are in the file.
        path: ``.pth`` / ``.pt`` / ``.bin`` (tensors only, no pickled code) or ``.safetensors``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, nothing in it belongs to this backbone, or a tensor of the right name has a shape that
            no interpolation explains; names the file.
    """
    source = _tensors(path)
    converted = _converter(backbone)(source, backbone)
    wanted = backbone.state_dict()
    usable = {name: value for name, value in converted.items() if name in wanted}
    if not usable:
        raise ValueError(
            f"{path}: nothing in this file belongs to {type(backbone).__name__}: it holds"
            f" '{next(iter(source), 'nothing')}' and so on, the backbone has '{next(iter(wanted))}' and so on"
        )
    for name, value in usable.items():
        if value.shape != wanted[name].shape:
            raise ValueError(
                f"{path}: {name} has shape {tuple(value.shape)}, {type(backbone).__name__} needs"
                f" {tuple(wanted[name].shape)}: weights of another size of this backbone"
            )
    backbone.load_state_dict(usable, strict=False)
    report = _report(path, source, usable, wanted)
    logger.info("Backbone weights: %s", report)
    return report


class LoadBackboneWeights(HookBase):
    """Loads ``MODEL.BACKBONE.WEIGHTS`` before the first iteration of a run that starts from nothing else."""

    def __init__(self, model: nn.Module, path: str):
        self._model, self._path = model, path

    def before_train(self) -> None:
        if self.trainer.start_iter == 0:
            load_backbone_weights(self._model.backbone, self._path)


def weight_hooks(cfg: CfgNode, model: nn.Module) -> list[HookBase]:
    """The hook that ``MODEL.BACKBONE.WEIGHTS`` asks for; none without it or when ``MODEL.WEIGHTS`` is given.

    Args:
        model: has ``.backbone`` (the unwrapped detector).
    """
    if not cfg.MODEL.BACKBONE.WEIGHTS or cfg.MODEL.WEIGHTS:
        return []
    return [LoadBackboneWeights(model, cfg.MODEL.BACKBONE.WEIGHTS)]


def _tensors(path: str) -> dict[str, Tensor]:
    """Every tensor of the file's state dict, without the prefix that wrappers add to all names."""
    state = read_checkpoint(path)
    for key in ("state_dict", "model", "teacher"):
        if isinstance(state.get(key), dict):
            state = state[key]
            break
    state = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    for prefix in ("module.", "backbone."):
        if state and any(name.startswith(prefix) for name in state):
            inside = {name[len(prefix) :]: value for name, value in state.items() if name.startswith(prefix)}
            state = inside if prefix == "backbone." else {**state, **inside}
    return state


def _report(path: str, source: dict[str, Tensor], usable: dict[str, Tensor], wanted: dict[str, Tensor]) -> LoadReport:
    # A converter hands on the very tensors it does not change, so identity tells where each came from.
    origin = {id(value): name for name, value in source.items()}
    report, used = LoadReport(path), set()
    for name, value in usable.items():
        theirs = origin.get(id(value))
        if theirs is None:
            theirs = _nearest(name, source)
            before = tuple(source[theirs].shape) if theirs else "several"
            report.interpolated[name] = f"{before} -> {tuple(value.shape)}"
        elif theirs == name:
            report.matched.append(name)
        else:
            report.renamed[name] = theirs
        used.add(theirs)
    report.left_out = [name for name in source if name not in used]
    report.missing = [name for name in wanted if name not in usable]
    return report


def _nearest(name: str, source: dict[str, Tensor]) -> str | None:
    """The file's name of a changed tensor: it ends like ours."""
    return next((theirs for theirs in source if theirs.endswith(name) or name.endswith(theirs)), None)


def _converter(backbone: nn.Module) -> Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]:
    by_type = {
        SwinV2: _from_swin_v2,
        SwinTransformer: _from_swin_v1,
        PlainViT: _from_mae,
        TimmViT: _from_timm_vit,
        ResNet: _from_torchvision,
    }
    return next((convert for kind, convert in by_type.items() if isinstance(backbone, kind)), _same_names)


def _same_names(source: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    return source


def _from_swin_v2(source: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """SimMIM (``encoder.*``, ``rpe_mlp``) or supervised; the classifier's last ``norm`` is no output norm of ours."""
    return {
        name.replace("rpe_mlp", "cpb_mlp"): value
        for name, value in _encoder_part(source).items()
        if not name.endswith(_DERIVED)
    }


def _from_swin_v1(source: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Supervised or SimMIM; bias tables of another window are resized (bicubic)."""
    wanted, converted = backbone.state_dict(), {}
    for name, value in _encoder_part(source).items():
        if name.endswith(_DERIVED):
            continue
        if name.endswith("relative_position_bias_table") and name in wanted and value.shape != wanted[name].shape:
            if value.shape[1:] == wanted[name].shape[1:]:
                side = (math.isqrt(wanted[name].shape[0]) + 1) // 2
                value = resize_rel_pos_bias_table(value, (side, side), tuple(wanted[name].shape))
        converted[name] = value
    return converted


def _encoder_part(source: dict[str, Tensor]) -> dict[str, Tensor]:
    inside = {n.removeprefix("encoder."): value for n, value in source.items() if n.startswith("encoder.")}
    return inside or source


def _from_mae(source: dict[str, Tensor], backbone: PlainViT) -> dict[str, Tensor]:
    """MAE's encoder, or a supervised ViT; the position embedding is resized (bicubic), relative positions linearly."""
    wanted, converted = backbone.state_dict(), {}
    for name, value in source.items():
        if name in wanted and value.shape != wanted[name].shape:
            if name == "pos_embed" and value.shape[-1] == wanted[name].shape[-1]:
                side = math.isqrt(wanted[name].shape[1] - 1)
                prefix = value.shape[1] - math.isqrt(value.shape[1]) ** 2
                value = resample_abs_pos_embed(value, [side, side], num_prefix_tokens=prefix)
                if not prefix:  # the model drops the class token's entry unread
                    value = torch.cat([torch.zeros_like(value[:, :1]), value], dim=1)
            elif "rel_pos_" in name and value.shape[1:] == wanted[name].shape[1:]:
                value = F.interpolate(value.T[None], size=len(wanted[name]), mode="linear")[0].T
        converted[name] = value
    return converted


def _from_timm_vit(source: dict[str, Tensor], backbone: TimmViT) -> dict[str, Tensor]:
    """timm's names, or those of the original release, which timm's own filter of this architecture knows."""
    if any(name.startswith("model.") for name in source):
        return source
    module = sys.modules[type(backbone.model).__module__]
    converted = module.checkpoint_filter_fn(source, backbone.model)
    return {f"model.{name}": value for name, value in converted.items()}


_TORCHVISION = (
    (r"^(conv1|bn1)\.", r"stem.\1."),
    (r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}."),
    (r"\bbn(\d)\.", r"conv\1.norm."),
    (r"downsample\.0\.", "shortcut."),
    (r"downsample\.1\.", "shortcut.norm."),
)


def _from_torchvision(source: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """torchvision's or timm's ResNet names to detectron2's."""
    converted = {}
    for name, value in source.items():
        if not name.endswith(_DERIVED):
            for pattern, replacement in _TORCHVISION:
                name = re.sub(pattern, replacement, name)
            converted[name] = value
    return converted
