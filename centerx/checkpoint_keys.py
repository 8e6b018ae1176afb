"""Parameter names of the released centerX code to ours and back.

Only names differ: shapes and the meaning of every number are the same. The released names also hold for checkpoints of
its teachers; those written by its stand-alone inference class are the same without "model".
"""

import re
from typing import NamedTuple

from torch import Tensor

_BLOCK = "backbone.bottom_up.trunk_output.block{s}.block{s}-{-1}"
# (released, ours). "{n}" is a number that is kept, "{-1}" one that is lower by 1 in ours (blocks counted from 0), and
# "{s}" the stage, which torchvision's RegNet repeats in the names of its blocks. The first match counts.
RULES: list[tuple[str, str]] = [
    ("backbone.stem.conv.", "backbone.bottom_up.stem.0."),
    ("backbone.stem.bn.", "backbone.bottom_up.stem.1."),
    ("backbone.s{s}.b{-1}.proj.", f"{_BLOCK}.proj.0."),
    ("backbone.s{s}.b{-1}.bn.", f"{_BLOCK}.proj.1."),
    ("backbone.s{s}.b{-1}.f.se.f_ex.0.", f"{_BLOCK}.f.se.fc1."),
    ("backbone.s{s}.b{-1}.f.se.f_ex.2.", f"{_BLOCK}.f.se.fc2."),
    *(
        (f"backbone.s{{s}}.b{{-1}}.f.{released}.", f"{_BLOCK}.f.{ours}.")
        for letter in "abc"
        for released, ours in ((letter, f"{letter}.0"), (f"{letter}_bn", f"{letter}.1"))
    ),
    ("backbone.conv1.", "backbone.bottom_up.conv1."),
    ("backbone.bn1.", "backbone.bottom_up.bn1."),
    ("backbone.layer{n}.", "backbone.bottom_up.layer{n}."),
    ("upsample.deconv{-1}.dcn.offset_mask_conv.", "backbone.neck.stages.{-1}.conv.offset."),
    ("upsample.deconv{-1}.dcn.dcnv2.", "backbone.neck.stages.{-1}.conv.deform."),
    ("upsample.deconv{-1}.dcn.conv.", "backbone.neck.stages.{-1}.conv."),
    ("upsample.deconv{-1}.dcn_bn.", "backbone.neck.stages.{-1}.conv_norm."),
    ("upsample.deconv{-1}.up_sample.", "backbone.neck.stages.{-1}.up."),
    ("upsample.deconv{-1}.up_bn.", "backbone.neck.stages.{-1}.up_norm."),
    *(
        (f"head.{released}_head.{layer}.", f"head.{ours}.{part}.")
        for released, ours in (("cls", "heatmap"), ("wh", "size"), ("reg", "offset"))
        for layer, part in (("feat_conv", "hidden"), ("out_conv", "out"))
    ),
]
# Deformable convolution without modulation; the way back from ours cannot tell it by name, see ``convert``.
UNMODULATED: list[tuple[str, str]] = [
    ("upsample.deconv{-1}.dcn.offset_conv.", "backbone.neck.stages.{-1}.conv.offset."),
    ("upsample.deconv{-1}.dcn.dcn.", "backbone.neck.stages.{-1}.conv.deform."),
]


class Conversion(NamedTuple):
    """Result of ``convert``.

    Attributes:
        state: the converted state dict, without what no rule knows.
        renamed: old name -> new name.
        unmatched: names no rule knows.
    """

    state: dict[str, Tensor]
    renamed: dict[str, str]
    unmatched: list[str]


def convert(state: dict[str, Tensor], *, reverse: bool = False) -> Conversion:
    """Rename a released state dict to ours, or ours to the released one with ``reverse``."""
    rules = UNMODULATED + RULES
    if reverse:
        unmodulated = any(name.endswith("conv.offset.bias") and len(value) == 18 for name, value in state.items())
        rules = [(ours, released) for released, ours in (rules if unmodulated else RULES + UNMODULATED)]
    compiled = [(_pattern(old), new) for old, new in rules]
    step = 1 if reverse else -1
    converted, renamed, unmatched = {}, {}, []
    for name, value in state.items():
        target = _rename(name, compiled, step)
        if target is None:
            unmatched.append(name)
        else:
            renamed[name] = target
            converted[target] = value
    return Conversion(converted, renamed, unmatched)


def from_released(checkpoint: dict) -> Conversion:
    """Turn a released checkpoint, ``{"model": state dict, ...}`` or the state dict, into a state dict of ours.

    Raises:
        ValueError: no entry has a released name.
    """
    state = checkpoint.get("model", checkpoint)
    conversion = convert({name.removeprefix("module."): value for name, value in state.items()})
    if not conversion.state:
        found = next(iter(state), "nothing")
        raise ValueError(f"this is no released centerX checkpoint: it holds '{found}' and the like")
    return conversion


def _pattern(template: str) -> re.Pattern:
    pattern = re.escape(template)
    for field, group in ((r"\{n\}", "n"), (r"\{\-1\}", "i"), (r"\{s\}", "s")):
        pattern = pattern.replace(field, rf"(?P<{group}>\d+)", 1).replace(field, rf"(?P={group})")
    return re.compile(pattern)


def _rename(name: str, rules: list[tuple[re.Pattern, str]], step: int) -> str | None:
    for pattern, new in rules:
        match = pattern.match(name)
        if match:
            numbers = match.groupdict()
            for field, value in (("{n}", "n"), ("{s}", "s")):
                new = new.replace(field, numbers.get(value) or "")
            if numbers.get("i"):
                new = new.replace("{-1}", str(int(numbers["i"]) + step))
            return new + name[match.end() :]
    return None
