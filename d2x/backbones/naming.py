"""Whose names the tensors of a network have, and the names under which files and backbones of one family meet."""

import re
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

# timm's features are stages_0 where its classifier has stages.0.
_COMMON = ((r"^model\.", ""), (r"^([a-z]+)_(\d+)\.", r"\1.\2."))


class Naming(NamedTuple):
    """One origin of weight files.

    Attributes:
        owner: in the genitive.
        sign: matches a name that networks of this origin have, and those before it in ``NAMINGS`` do not.
        rules: (pattern, replacement) in turn lead to the family's common names: detectron2's for ResNets, the authors'
            for Swin, timm's for all others.
    """

    owner: str
    sign: str
    rules: tuple[tuple[str, str | Callable], ...] = ()


def _inverted_residual(match: re.Match) -> str:
    """MobileNetV2: torchvision counts blocks and their parts through, timm counts blocks by stage and names parts."""
    block = int(match[1]) - 1
    stage = next(stage for stage in range(7) if block < sum(_BLOCKS[: stage + 1]) or stage == 6)
    parts = {"0.0": "conv_pw", "0.1": "bn1", "1.0": "conv_dw", "1.1": "bn2", "2": "conv_pwl", "3": "bn3"}
    if not block:
        parts = {"0.0": "conv_dw", "0.1": "bn1", "1": "conv_pw", "2": "bn2"}
    return f"blocks.{stage}.{block - sum(_BLOCKS[:stage])}.{parts.get(match[2])}."


_BLOCKS = (1, 2, 3, 4, 3, 3, 1)  # of MobileNetV2's stages
# timm counts patch merging to the stage after it, all others to the one before.
_EARLIER_MERGING = (r"^layers\.(\d+)\.downsample\.", lambda match: f"layers.{int(match[1]) - 1}.downsample.")
NAMINGS = (
    Naming("SimMIM's", r"^encoder\.(layers\.0\.blocks|patch_embed)\.", ((r"^encoder\.", ""), ("rpe_mlp", "cpb_mlp"))),
    Naming("the Swin authors'", r"^layers\.0\.downsample\."),
    Naming("timm's Swin", r"^layers\.1\.downsample\.", (_EARLIER_MERGING,)),
    Naming("the Swin authors'", r"^layers\.0\.blocks\.0\.attn\."),
    Naming(
        "torchvision's Swin",
        r"^features\.1\.0\.attn\.",
        (
            (r"^features\.0\.0\.", "patch_embed.proj."),
            (r"^features\.0\.2\.", "patch_embed.norm."),
            (r"^features\.([246])\.", lambda match: f"layers.{int(match[1]) // 2 - 1}.downsample."),
            (r"^features\.([1357])\.(\d+)\.", lambda match: f"layers.{int(match[1]) // 2}.blocks.{match[2]}."),
            (r"\.mlp\.0\.", ".mlp.fc1."),
            (r"\.mlp\.3\.", ".mlp.fc2."),
        ),
    ),
    Naming(
        "torchvision's MobileNetV2",
        r"^features\.17\.conv\.0\.0\.",
        (
            (r"^features\.0\.0\.", "conv_stem."),
            (r"^features\.0\.1\.", "bn1."),
            (r"^features\.18\.0\.", "conv_head."),
            (r"^features\.18\.1\.", "bn2."),
            (r"^features\.(\d+)\.conv\.(\d(?:\.\d)?)\.", _inverted_residual),
        ),
    ),
    Naming(
        "torchvision's RegNet",
        r"^trunk_output\.",
        (
            (r"^stem\.0\.", "stem.conv."),
            (r"^stem\.1\.", "stem.bn."),
            (r"^trunk_output\.block(\d+)\.block\d+-(\d+)\.", lambda match: f"s{match[1]}.b{int(match[2]) + 1}."),
            (r"\.proj\.([01])\.", lambda match: f".downsample.{('conv', 'bn')[int(match[1])]}."),
            (r"\.f\.se\.", ".se."),
            (r"\.f\.([abc])\.([01])\.", lambda m: f".conv{'_abc'.index(m[1])}.{('conv', 'bn')[int(m[2])]}."),
        ),
    ),
    Naming(
        "torchvision's or timm's ResNet",
        r"^layer1\.0\.conv1\.",
        (
            (r"^(conv1|bn1)\.", r"stem.\1."),
            (r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}."),
            (r"\bbn(\d)\.", r"conv\1.norm."),
            (r"downsample\.0\.", "shortcut."),
            (r"downsample\.1\.", "shortcut.norm."),
        ),
    ),
    Naming("detectron2's ResNet", r"^stem\.conv1\."),
    Naming("this project's SmallResNet", r"^stem\.0\.norm\."),
    Naming("timm's RegNet", r"^s1\.b1\."),
    Naming("MAE's", r"^decoder_(embed|blocks|pos_embed)\b"),
    Naming("DINOv3's", r"^storage_tokens$"),
    Naming("timm's ViT", r"^blocks\.0\.attn\."),
    Naming("timm's", r"^(conv_stem|blocks\.0\.0|stages\.0)\."),
    Naming("torchvision's", r"^(features\.\d|conv_proj|encoder\.layers\.encoder_layer_0)\b"),
    Naming("Hugging Face transformers'", r"\b(embeddings\.\w+|encoder\.layers?\.0\.attention|encoder\.stages\.0)\."),
    Naming("Caffe2's", r"^(conv1|res2_0_branch2a)_w$"),
    Naming("a whole detector's", r"^(backbone|neck|transformer|roi_heads|head|bbox_head)\."),
)


def common_names(names: Iterable[str]) -> dict[str, str]:
    """Each name of one network -> its name in the family, the same for every origin."""
    short = {name: _replaced(name, _COMMON) for name in names}
    naming = _naming(short.values())
    return {name: _replaced(it, naming.rules) for name, it in short.items()} if naming else short


def owner(names: Mapping[str, object]) -> str:
    """Whose names these are, for a message: "torchvision's RegNet names ('stem.0.weight' and so on)"."""
    naming = _naming([_replaced(name, _COMMON) for name in names])
    return f"{naming.owner if naming else 'unfamiliar'} names ('{next(iter(names), 'nothing')}' and so on)"


def _naming(names: Iterable[str]) -> Naming | None:
    text = "\n".join(names)
    return next((naming for naming in NAMINGS if re.search(naming.sign, text, re.MULTILINE)), None)


def _replaced(name: str, rules: tuple[tuple[str, str | Callable], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name
