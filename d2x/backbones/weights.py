"""Pre-trained weights for a backbone from a local file of any common origin, with a report of what went where.

Known origins: SimMIM and supervised Swin V1 / V2 files (the authors', timm's or torchvision's), MAE (plain ViT), DINOv3
and other timm ViTs, torchvision and timm ResNets, and a detector checkpoint of this project (its ``backbone.`` part).
"""

import argparse
import logging
import math
import os
import re
import sys
from collections import OrderedDict
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

from d2x.backbones.swin_v2 import SwinV2
from d2x.backbones.timm_vit import TimmViT
from d2x.checkpoint.files import read_checkpoint

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
        backbone: :class:`SwinV2`, Swin V1, plain ViT, :class:`TimmViT`, detectron2's ResNet, or any module
            whose own names are in the file.
        path: ``.pth`` / ``.pt`` / ``.bin`` (tensors and plain values only, no pickled code) or ``.safetensors``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, nothing in it belongs to this backbone, or a tensor of the right name has a shape that
            no interpolation explains; names the file.
    """
    source = _tensors(path)
    wanted = backbone.state_dict()
    named = {name: value for name, value in _renaming(backbone)(source, backbone).items() if name in wanted}
    if not named:
        raise ValueError(
            f"{path}: nothing in this file belongs to {type(backbone).__name__}: it holds"
            f" '{next(iter(source), 'nothing')}' and so on, the backbone has '{next(iter(wanted))}' and so on"
        )
    usable = {name: _fit(name, value, wanted[name]) for name, value in named.items()}
    for name, value in usable.items():
        if value.shape != wanted[name].shape:
            raise ValueError(
                f"{path}: {name} has shape {tuple(value.shape)}, {type(backbone).__name__} needs"
                f" {tuple(wanted[name].shape)}: weights of another size of this backbone"
            )
    backbone.load_state_dict(usable, strict=False)
    report = _report(path, source, named, usable, wanted)
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
    if not os.path.isfile(path):
        raise FileNotFoundError(f"MODEL.BACKBONE.WEIGHTS: file not found: {path}")
    # Pre-training codes keep their settings beside the weights, which are plain data: SimMIM's a yacs node (read as a
    # dictionary, which it is), others a command line.
    settings = [argparse.Namespace, (OrderedDict, "yacs.config.CfgNode")]
    with torch.serialization.safe_globals(settings):
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


def _report(
    path: str,
    source: dict[str, Tensor],
    named: dict[str, Tensor],
    usable: dict[str, Tensor],
    wanted: dict[str, Tensor],
) -> LoadReport:
    # Renaming hands on the very tensors it gets, or parts (views) of them, so identity tells where each came from.
    origin = {id(value): name for name, value in source.items()}
    report, used = LoadReport(path), set()
    for name, value in usable.items():
        theirs = origin.get(id(named[name])) or origin.get(id(named[name]._base))
        changed = theirs is None or value is not named[name]
        if theirs is None:  # changed by timm's own filter
            theirs = _nearest(name, source)
        if changed:
            before = tuple(source[theirs].shape) if theirs else "several"
            report.interpolated[name] = f"{before} -> {tuple(value.shape)}"
        elif theirs == name:
            report.matched.append(name)
        else:
            report.renamed[name] = theirs
        used.add(theirs)
    report.left_out = [name for name in source if name not in used]
    report.missing = [name for name in wanted if name not in usable and not name.endswith(_DERIVED)]
    return report


def _nearest(name: str, source: dict[str, Tensor]) -> str | None:
    """The file's name of a changed tensor: it ends like ours."""
    return next((theirs for theirs in source if theirs.endswith(name) or name.endswith(theirs)), None)


def _fit(name: str, value: Tensor, wanted: Tensor) -> Tensor:
    """Resize what depends on the window or image of pre-training; anything else as it is.

    Bias tables and position embeddings bicubic, ViTDet's relative positions linear.
    """
    if value.shape == wanted.shape or value.ndim != wanted.ndim:
        return value
    if name.endswith("relative_position_bias_table") and value.shape[1:] == wanted.shape[1:]:
        side = (math.isqrt(len(wanted)) + 1) // 2
        return resize_rel_pos_bias_table(value, (side, side), tuple(wanted.shape))
    if name.endswith("pos_embed") and value.shape[-1] == wanted.shape[-1]:
        theirs, ours = (size - math.isqrt(size) ** 2 for size in (value.shape[1], wanted.shape[1]))
        side = math.isqrt(wanted.shape[1])
        value = resample_abs_pos_embed(value, [side, side], num_prefix_tokens=theirs)
        # Entries of the class token: the model drops ours unread, so a file without them may give zeros.
        return torch.cat([value.new_zeros(1, max(ours - theirs, 0), value.shape[-1]), value], dim=1)
    if "rel_pos_" in name and value.shape[1:] == wanted.shape[1:]:
        return F.interpolate(value.T[None], size=len(wanted), mode="linear")[0].T
    return value


def _renaming(backbone: nn.Module) -> Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]]:
    by_type = {
        SwinV2: _from_swin,
        SwinTransformer: _from_swin,
        TimmViT: _from_timm_vit,
        ResNet: _from_torchvision,
    }
    return next((rename for kind, rename in by_type.items() if isinstance(backbone, kind)), _same_names)


def _same_names(source: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """MAE's encoder and supervised ViTs in timm's form; torchvision's networks in torchvision's form."""
    return {name: value for name, value in source.items() if not name.endswith(_DERIVED)}


# torchvision numbers patch embedding, stages and mergings through as features.0 to features.7.
_TORCHVISION_SWIN: tuple[tuple[str, str | Callable], ...] = (
    (r"^features\.0\.0\.", "patch_embed.proj."),
    (r"^features\.0\.2\.", "patch_embed.norm."),
    (r"^features\.([246])\.", lambda match: f"layers.{int(match[1]) // 2 - 1}.downsample."),
    (r"^features\.([1357])\.(\d+)\.", lambda match: f"layers.{int(match[1]) // 2}.blocks.{match[2]}."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
)


def _from_swin(source: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """Swin V1 or V2: SimMIM (``encoder.*``, ``rpe_mlp``), supervised in its authors', timm's or torchvision's form.

    The classifier's last ``norm`` is no output norm of ours.
    """
    source = {n.removeprefix("encoder."): v for n, v in source.items() if n.startswith("encoder.")} or source
    # timm counts patch merging to the stage after it, all others to the one before.
    shifted = any(name.startswith("layers.1.downsample.") for name in source)
    shifted = shifted and not any(name.startswith("layers.0.downsample.") for name in source)
    renamed = {}
    for name, value in source.items():
        if name.endswith(_DERIVED):
            continue
        name = _replaced(name, _TORCHVISION_SWIN).replace("rpe_mlp", "cpb_mlp")
        if shifted:
            name = re.sub(r"^layers\.(\d+)\.downsample\.", lambda m: f"layers.{int(m[1]) - 1}.downsample.", name)
        if isinstance(backbone, SwinV2) and name.endswith("attn.qkv.bias"):
            # One bias for query, key and value; that of the key is zero.
            query, _, part = value.chunk(3)
            renamed[name.replace("qkv.bias", "q_bias")] = query
            renamed[name.replace("qkv.bias", "v_bias")] = part
            continue
        renamed[name] = value
    return renamed


def _from_timm_vit(source: dict[str, Tensor], backbone: TimmViT) -> dict[str, Tensor]:
    """timm's names, or those of the original release, which timm's own filter of this architecture knows."""
    if any(name.startswith("model.") for name in source):
        return source
    module = sys.modules[type(backbone.model).__module__]
    converted = module.checkpoint_filter_fn(source, backbone.model)
    return {f"model.{name}": value for name, value in converted.items()}


_TORCHVISION_RESNET: tuple[tuple[str, str | Callable], ...] = (
    (r"^(conv1|bn1)\.", r"stem.\1."),
    (r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}."),
    (r"\bbn(\d)\.", r"conv\1.norm."),
    (r"downsample\.0\.", "shortcut."),
    (r"downsample\.1\.", "shortcut.norm."),
)


def _from_torchvision(source: dict[str, Tensor], backbone: nn.Module) -> dict[str, Tensor]:
    """torchvision's or timm's ResNet names to detectron2's."""
    return {
        _replaced(name, _TORCHVISION_RESNET): value for name, value in source.items() if not name.endswith(_DERIVED)
    }


def _replaced(name: str, rules: tuple[tuple[str, str | Callable], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
