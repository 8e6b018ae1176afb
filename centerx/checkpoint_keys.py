"""Parameter names of the released centerX code to ours and back.

Only names differ: shapes and the meaning of every number are the same. The released names also hold for checkpoints of
its teachers; those written by its stand-alone inference class are the same without "model".
"""

from torch import Tensor

from d2x.checkpoint.conversion import Conversion, renaming

_BLOCK = "backbone.bottom_up.trunk_output.block{s}.block{s}-{i}"
# (released, ours). "{n}" is a number that is kept, "{i}" one that is lower by 1 in ours (blocks counted from 0), and
# "{s}" the stage, which torchvision's RegNet repeats in the names of its blocks. The first match counts.
RULES: list[tuple[str, str]] = [
    ("backbone.stem.conv.", "backbone.bottom_up.stem.0."),
    ("backbone.stem.bn.", "backbone.bottom_up.stem.1."),
    ("backbone.s{s}.b{i}.proj.", f"{_BLOCK}.proj.0."),
    ("backbone.s{s}.b{i}.bn.", f"{_BLOCK}.proj.1."),
    ("backbone.s{s}.b{i}.f.se.f_ex.0.", f"{_BLOCK}.f.se.fc1."),
    ("backbone.s{s}.b{i}.f.se.f_ex.2.", f"{_BLOCK}.f.se.fc2."),
    *(
        (f"backbone.s{{s}}.b{{i}}.f.{released}.", f"{_BLOCK}.f.{ours}.")
        for letter in "abc"
        for released, ours in ((letter, f"{letter}.0"), (f"{letter}_bn", f"{letter}.1"))
    ),
    ("backbone.conv1.", "backbone.bottom_up.conv1."),
    ("backbone.bn1.", "backbone.bottom_up.bn1."),
    ("backbone.layer{n}.", "backbone.bottom_up.layer{n}."),
    ("upsample.deconv{i}.dcn.offset_mask_conv.", "backbone.neck.stages.{i}.conv.offset."),
    ("upsample.deconv{i}.dcn.dcnv2.", "backbone.neck.stages.{i}.conv.deform."),
    ("upsample.deconv{i}.dcn.conv.", "backbone.neck.stages.{i}.conv."),
    ("upsample.deconv{i}.dcn_bn.", "backbone.neck.stages.{i}.conv_norm."),
    ("upsample.deconv{i}.up_sample.", "backbone.neck.stages.{i}.up."),
    ("upsample.deconv{i}.up_bn.", "backbone.neck.stages.{i}.up_norm."),
    *(
        (f"head.{released}_head.{layer}.", f"head.{ours}.{part}.")
        for released, ours in (("cls", "heatmap"), ("wh", "size"), ("reg", "offset"))
        for layer, part in (("feat_conv", "hidden"), ("out_conv", "out"))
    ),
]
# Deformable convolution without modulation; the way back from ours cannot tell it by name, see ``convert``.
UNMODULATED: list[tuple[str, str]] = [
    ("upsample.deconv{i}.dcn.offset_conv.", "backbone.neck.stages.{i}.conv.offset."),
    ("upsample.deconv{i}.dcn.dcn.", "backbone.neck.stages.{i}.conv.deform."),
]


# Layers with one output for each class, by our names.
CLASS_LAYERS: tuple[str, ...] = ("head.heatmap.out.",)


def convert(state: dict[str, Tensor], *, reverse: bool = False, keep_outputs: bool = True) -> Conversion:
    """Rename a released state dict to ours, or ours to the released one with ``reverse``.

    ``keep_outputs`` changes nothing: released class heads have an output for each class and no more.
    """
    rules = UNMODULATED + RULES
    if reverse:
        unmodulated = any(name.endswith("conv.offset.bias") and len(value) == 18 for name, value in state.items())
        rules = [(ours, released) for released, ours in (rules if unmodulated else RULES + UNMODULATED)]
    rename = renaming(rules, step=1 if reverse else -1)
    targets = {name: rename(name) for name in state}
    renamed = {name: target for name, target in targets.items() if target is not None}
    unmatched = [name for name, target in targets.items() if target is None]
    return Conversion({target: state[name] for name, target in renamed.items()}, renamed, unmatched)
