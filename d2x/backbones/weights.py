"""Pre-trained weights for a backbone from a file of any common origin, with a report of what went where.

Whose names are understood stands in ``naming``: torchvision's, timm's, detectron2's, the Swin authors', SimMIM's and so
on; also as a part of a whole detector, whatever stands before its names there.
"""

import argparse
import logging
import math
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from timm.layers.pos_embed import resample_abs_pos_embed
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table
from torch import Tensor, nn

from d2x.backbones.naming import common_names, owner
from d2x.checkpoint.files import CheckpointError, read_checkpoint

logger = logging.getLogger(__name__)

# Follow from a model's own window sizes, so a file's version of them is never taken.
_DERIVED = ("relative_coords_table", "relative_position_index", "attn_mask", "num_batches_tracked")
# Where the tensors are in a file; of averaged weights and others beside them, the averaged.
_STATES = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher")
# A file is another network's when it has less than this part of the backbone's tensors.
_LEAST_FOUND = 0.5
# Swin V2 has no bias of the keys; others keep one bias for query, key and value, that of the key zero.
_JOINT_BIAS = re.compile(r"^(layers\.\d+\.blocks\.\d+\.attn\.)qkv\.bias$")


@runtime_checkable
class Downloads(Protocol):
    """A backbone whose weights have names, such as "IMAGENET1K_V1"."""

    def download(self, weights: str) -> dict[str, Tensor]:
        """Its state dict of that name; ValueError where there is none or it cannot be had."""
        ...


@runtime_checkable
class Converts(Protocol):
    """A backbone of a library that knows its models' original releases."""

    def from_release(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The library's names and shapes for a released state dict; {} where it knows none."""
        ...


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


def load_backbone_weights(backbone: nn.Module, source: str, *, key: str = "MODEL.BACKBONE.WEIGHTS") -> LoadReport:
    """Load pre-trained weights into a backbone, in place, and log the report.

    Args:
        source: ``.pth`` / ``.pt`` / ``.bin`` (tensors and plain values only, no pickled code), ``.safetensors``, or a
            ``.pkl`` of arrays as detectron2 publishes; or a name for the backbone's ``download``.
        key: where the user wrote ``source``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, another network's, or a tensor of the right name has a shape that no interpolation
            explains; names the file and whose names it has. Or a name that cannot be had.
    """
    wanted = {name: value for name, value in backbone.state_dict().items() if not name.endswith(_DERIVED)}
    inside, matching = max(
        ((state, _match(state, wanted)) for state in _networks(_tensors(source, backbone, key), len(wanted))),
        key=lambda pair: len(pair[1]),
    )
    tensors = inside
    if len(matching) < len(wanted) and isinstance(backbone, Converts):
        released = _released(backbone, inside)
        converted = _match(released, wanted)
        if len(converted) > len(matching):
            tensors, matching = released, converted
    kind = f"{type(backbone).__name__}({backbone.extra_repr()})"
    whose = f"it holds {owner(inside)}, the backbone has {owner(wanted)}"
    if len(matching) < _LEAST_FOUND * len(wanted):
        raise ValueError(
            f"{source}: weights of another network: it has {len(matching)} of the {len(wanted)} tensors of {kind};"
            f" {whose}"
        )
    named = {ours: _part(ours, theirs, tensors[theirs]) for ours, theirs in matching.items()}
    usable = {name: _fit(name, value, wanted[name]) for name, value in named.items()}
    for name, value in usable.items():
        if value.shape != wanted[name].shape:
            raise ValueError(
                f"{source}: {name} has shape {tuple(value.shape)}, {kind} needs {tuple(wanted[name].shape)}:"
                f" weights of another size of this backbone; {whose}"
            )
    backbone.load_state_dict(usable, strict=False)
    report = _report(source, inside, named, usable, wanted)
    logger.info("Backbone weights: %s", report)
    return report


class LoadBackboneWeights(HookBase):
    """Loads weights before the first iteration of a run that starts from nothing else."""

    def __init__(self, backbone: nn.Module, source: str):
        self._backbone, self._source = backbone, source

    def before_train(self) -> None:
        if self.trainer.start_iter == 0:
            load_backbone_weights(self._backbone, self._source)


def weight_hooks(cfg: CfgNode, model: nn.Module, backbone: str = "backbone") -> list[HookBase]:
    """The hook that ``MODEL.BACKBONE.WEIGHTS`` asks for; none without it or when ``MODEL.WEIGHTS`` is given.

    Args:
        model: the unwrapped detector.
        backbone: name of the backbone in it.
    """
    if not cfg.MODEL.BACKBONE.WEIGHTS or cfg.MODEL.WEIGHTS:
        return []
    return [LoadBackboneWeights(model.get_submodule(backbone), cfg.MODEL.BACKBONE.WEIGHTS)]


def _tensors(source: str, backbone: nn.Module, key: str) -> dict[str, Tensor]:
    """Every tensor of the file's state dict."""
    state: dict
    if os.path.isfile(source):
        state = _read(source)
    elif not os.path.splitext(source)[1] and isinstance(backbone, Downloads):
        state = dict(backbone.download(source))
    else:
        by_name = "" if os.path.splitext(source)[1] else f" ({type(backbone).__name__} has no weights by name)"
        raise FileNotFoundError(f"{key}: file not found: {source}{by_name}")
    for name in _STATES:
        if isinstance(state.get(name), dict):
            state = state[name]
    state = {name: torch.from_numpy(v) if isinstance(v, np.ndarray) else v for name, v in state.items()}
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _read(path: str) -> dict:
    if path.endswith(".pkl"):
        try:
            with open(path, "rb") as file:
                state = _ArraysOnly(file, encoding="latin1").load()
        except Exception as error:  # pickle raises anything for wrong bytes
            raise CheckpointError(f"{path}: refused or not readable ({error})") from error
    else:
        # Pre-training codes keep their settings beside the weights, which are plain data: SimMIM's a yacs node (read as
        # a dictionary, which it is), others a command line.
        with torch.serialization.safe_globals([argparse.Namespace, (OrderedDict, "yacs.config.CfgNode")]):
            state = read_checkpoint(path)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: not a checkpoint: it holds no weights by name")
    return state


class _ArraysOnly(pickle.Unpickler):
    """Reads numpy's arrays and plain containers; anything else that a pickle names could run code."""

    _ALLOWED = (
        "collections.OrderedDict numpy.ndarray numpy.dtype _codecs.encode numpy.core.multiarray._reconstruct"
        " numpy._core.multiarray._reconstruct"
    ).split()

    def find_class(self, module: str, name: str):
        if f"{module}.{name}" not in self._ALLOWED:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, and may hold arrays and plain values only")
        return super().find_class(module, name)


def _networks(state: dict[str, Tensor], size: int) -> Iterator[dict[str, Tensor]]:
    """The state dict, and the part below each prefix that could hold a network of ``size`` tensors, without it."""
    yield state
    counts: dict[str, int] = {}
    for name in state:
        parts = name.split(".")
        for depth in range(1, len(parts)):
            prefix = ".".join(parts[:depth]) + "."
            counts[prefix] = counts.get(prefix, 0) + 1
    for prefix, count in counts.items():
        if count >= _LEAST_FOUND * size:
            yield {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _match(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, str]:
    """Name in the backbone -> name in the file."""
    ours = {common: name for name, common in common_names(wanted).items()}
    loosely = {common.replace("_", "."): name for common, name in ours.items()}  # timm's features: a_b for a.b
    matching = {}
    for theirs, common in common_names(state).items():
        joint = _JOINT_BIAS.match(common)
        if joint and common not in ours:
            matching |= {ours[n]: theirs for n in (f"{joint[1]}q_bias", f"{joint[1]}v_bias") if n in ours}
        elif name := ours.get(common) or loosely.get(common.replace("_", ".")):
            matching[name] = theirs
    return matching


def _part(ours: str, theirs: str, value: Tensor) -> Tensor:
    if theirs.endswith("qkv.bias") and ours.endswith(("q_bias", "v_bias")):
        return value.chunk(3)[0 if ours.endswith("q_bias") else 2]
    return value


def _released(backbone: Converts, state: dict[str, Tensor]) -> dict[str, Tensor]:
    try:
        return backbone.from_release(dict(state))
    except Exception:  # the libraries' converters raise anything on a file they do not know
        logger.debug("no release of %s", type(backbone).__name__, exc_info=True)
        return {}


def _report(
    path: str,
    source: dict[str, Tensor],
    named: dict[str, Tensor],
    usable: dict[str, Tensor],
    wanted: dict[str, Tensor],
) -> LoadReport:
    # Conversion hands on the very tensors it gets, or parts (views) of them, so identity tells where each came from.
    origin = {id(value): name for name, value in source.items()}
    report, used = LoadReport(path), set()
    for name, value in usable.items():
        theirs = origin.get(id(named[name])) or origin.get(id(named[name]._base))
        changed = theirs is None or value is not named[name]
        if theirs is None:  # changed by a converter: the file's name ends like ours
            theirs = next((other for other in source if other.endswith(name) or name.endswith(other)), None)
        if theirs is None or changed:
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
