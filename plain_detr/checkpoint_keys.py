"""Upstream parameter names to ours and back, and 91 class outputs to COCO's 80 and back.

The official Plain-DETR state dict holds the heads twice (``class_embed`` and ``transformer.decoder.class_embed``, and
the same for ``bbox_embed``); ours holds them once. The last of the official heads is the proposals'.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor, nn

# (official, ours), both with "{n}" for a number that is kept. Order matters only between a name and its own prefix.
HEAD_RULES: list[tuple[str, str]] = [
    ("transformer.level_embed", "level_embed"),
    ("transformer.decoder.layers.{n}.cross_attn.cpb_mlp1.", "decoder.layers.{n}.cross_attention.box_rpb.mlp_x."),
    ("transformer.decoder.layers.{n}.cross_attn.cpb_mlp2.", "decoder.layers.{n}.cross_attention.box_rpb.mlp_y."),
    ("transformer.decoder.layers.{n}.cross_attn.q.", "decoder.layers.{n}.cross_attention.query."),
    ("transformer.decoder.layers.{n}.cross_attn.k.", "decoder.layers.{n}.cross_attention.key."),
    ("transformer.decoder.layers.{n}.cross_attn.v.", "decoder.layers.{n}.cross_attention.value."),
    ("transformer.decoder.layers.{n}.cross_attn.proj.", "decoder.layers.{n}.cross_attention.output."),
    ("transformer.decoder.layers.{n}.norm1.", "decoder.layers.{n}.cross_attention_norm."),
    ("transformer.decoder.layers.{n}.norm2.", "decoder.layers.{n}.self_attention_norm."),
    ("transformer.decoder.layers.{n}.norm3.", "decoder.layers.{n}.feedforward_norm."),
    ("transformer.decoder.layers.{n}.self_attn.", "decoder.layers.{n}.self_attention."),
    ("transformer.decoder.layers.{n}.linear{n}.", "decoder.layers.{n}.feedforward.linear{n}."),
    ("transformer.decoder.final_layer_norm.", "decoder.final_norm."),
    ("transformer.encoder.layers.{n}.self_attn.", "encoder.layers.{n}.self_attention."),
    ("transformer.encoder.layers.{n}.norm1.", "encoder.layers.{n}.self_attention_norm."),
    ("transformer.encoder.layers.{n}.norm2.", "encoder.layers.{n}.feedforward_norm."),
    ("transformer.encoder.layers.{n}.linear{n}.", "encoder.layers.{n}.feedforward.linear{n}."),
    ("transformer.enc_output.", "proposals.output."),
    ("transformer.enc_output_norm.", "proposals.output_norm."),
    ("transformer.enc_output_proj.{n}.1.ln.", "proposals.levels.{n}.1."),
    ("transformer.enc_output_proj.{n}.4.ln.", "proposals.levels.{n}.4."),
    ("transformer.enc_output_proj.{n}.{n}.", "proposals.levels.{n}.{n}."),
    ("transformer.pos_trans.", "queries.from_box."),
    ("transformer.pos_trans_norm.", "queries.from_box_norm."),
    ("query_embed.", "queries.content."),
    ("input_proj.0.0.", "input_proj.conv."),
    ("input_proj.0.1.", "input_proj.norm."),
    ("backbone.0.upsample.1.ln.", "upsample.1."),
    ("backbone.0.upsample.4.ln.", "upsample.4."),
    ("backbone.0.upsample.{n}.", "upsample.{n}."),
    # "last" stands for the number of the last head.
    ("class_embed.last.", "proposals.head.class_logits."),
    ("bbox_embed.last.layers.0.", "proposals.head.raw_box.0."),
    ("bbox_embed.last.layers.1.", "proposals.head.raw_box.2."),
    ("bbox_embed.last.layers.2.", "proposals.head.raw_box.4."),
    ("class_embed.{n}.", "decoder.heads.{n}.class_logits."),
    ("bbox_embed.{n}.layers.0.", "decoder.heads.{n}.raw_box.0."),
    ("bbox_embed.{n}.layers.1.", "decoder.heads.{n}.raw_box.2."),
    ("bbox_embed.{n}.layers.2.", "decoder.heads.{n}.raw_box.4."),
]

# The same for backbones: Swin in Plain-DETR; a ViT of DINOv3, whose names in timm differ, in its detector.
_DINO, _TIMM = "backbone.0._backbone.backbone.", "backbone.model."
BACKBONE_RULES: list[tuple[str, str]] = [
    (_DINO + "storage_tokens", _TIMM + "reg_token"),
    (_DINO + "blocks.{n}.ls{n}.gamma", _TIMM + "blocks.{n}.gamma_{n}"),
    (_DINO + "blocks.{n}.mlp.w1.", _TIMM + "blocks.{n}.mlp.fc1_g."),
    (_DINO + "blocks.{n}.mlp.w2.", _TIMM + "blocks.{n}.mlp.fc1_x."),
    (_DINO + "blocks.{n}.mlp.w3.", _TIMM + "blocks.{n}.mlp.fc2."),
    (_DINO, _TIMM),
    ("backbone.0.net.body.", "backbone."),
]

# Official entries without a counterpart: tables that follow from the window sizes, and what only pre-training uses.
_DROPPED = re.compile(
    r"\.(relative_coords_table|relative_position_index)$"
    rf"|^{re.escape(_DINO)}(mask_token$|rope_embed\.|local_cls_norm\.)"
)
_CLASS_ROWS = re.compile(r"^(decoder\.heads\.\d+|proposals\.head)\.class_logits\.(weight|bias)$")

# Category id of each of COCO's 80 contiguous classes: the row of an official class head that scores it.
COCO_IDS: list[int] = [category["id"] for category in COCO_CATEGORIES if category["isthing"]]

# Bias of class outputs that stand for no category (score 5e-5).
_UNUSED_CLASS_BIAS = -10.0

# Official names that repeat others: prefix before "class_embed." or "bbox_embed.".
ALIAS_PREFIX = "transformer.decoder."


class Conversion(NamedTuple):
    """Result of ``convert``.

    Attributes:
        state: the converted state dict, without what no rule knows.
        renamed: old name -> new name (the first of two, where a name has an alias).
        unmatched: names no rule knows.
        dropped: names that are known to have no counterpart.
    """

    state: dict[str, Tensor]
    renamed: dict[str, str]
    unmatched: list[str]
    dropped: list[str]


def convert(state: dict[str, Tensor], *, reverse: bool = False) -> Conversion:
    """Rename an official state dict to ours, or ours to the official one with ``reverse``."""
    rules = [_compile(*(rule[::-1] if reverse else rule)) for rule in HEAD_RULES + BACKBONE_RULES]
    last = _last_head(state, reverse)
    converted: dict[str, Tensor] = {}
    renamed: dict[str, str] = {}
    unmatched: list[str] = []
    dropped: list[str] = []
    for name, value in state.items():
        source = name
        if not reverse:
            if _DROPPED.search(name):
                dropped.append(name)
                continue
            source = re.sub(rf"^{re.escape(ALIAS_PREFIX)}(?=(class|bbox)_embed\.)", "", source)
            source = re.sub(rf"^(class|bbox)_embed\.{last}\.", r"\1_embed.last.", source)
        target = _rename(source, rules)
        if target is None:
            unmatched.append(name)
            continue
        if reverse:
            target = target.replace("_embed.last.", f"_embed.{last}.")
            if target.startswith(("class_embed.", "bbox_embed.")):
                converted[ALIAS_PREFIX + target] = value
        converted[target] = value
        renamed[name] = target
    return Conversion(converted, renamed, unmatched, dropped)


def from_official(checkpoint: dict, *, category_ids: Sequence[int] | None = COCO_IDS) -> Conversion:
    """Turn an official checkpoint (Plain-DETR's, or DINOv3's detector) into a state dict of ours.

    Args:
        checkpoint: what the file holds: ``{"model": state dict, ...}`` or the state dict.
        category_ids: the official class output of each of our classes; None keeps the outputs as they are.

    Raises:
        ValueError: no entry has an official name, or a class head has too few outputs for the category ids.
    """
    state = checkpoint.get("model", checkpoint)
    conversion = convert(state)
    if not conversion.state:
        name = next(iter(state), "nothing")
        raise ValueError(f"this is no official Plain-DETR checkpoint: it holds '{name}' and the like")
    if category_ids is not None:
        conversion = conversion._replace(state=select_classes(conversion.state, category_ids))
    return conversion


def to_official(
    model: nn.Module, *, category_ids: Sequence[int] | None = COCO_IDS, num_outputs: int = 91
) -> Conversion:
    """The official state dict of one of our detectors, with the tables our checkpoints leave out.

    Args:
        model: the detector.
        category_ids: the official class output of each of our classes; None keeps the outputs as they are.
        num_outputs: of an official class head.
    """
    state = {**model.state_dict(), **{n: buffer for n, buffer in model.named_buffers() if _DROPPED.search(n)}}
    if category_ids is not None:
        state = spread_classes(state, category_ids, num_outputs)
    return convert(state, reverse=True)


def select_classes(state: dict[str, Tensor], category_ids: Sequence[int]) -> dict[str, Tensor]:
    """Keep the rows of our class heads (still with one output per category id) that stand for a class.

    The decoder's heads give class c row ``category_ids[c]``. The proposals' head scores objectness in its channel 0,
    whatever the classes, so it keeps its first rows.
    """
    selected = dict(state)
    for name, rows in _class_rows(state):
        if len(rows) <= max(category_ids):
            raise ValueError(f"{name} has {len(rows)} outputs, too few for category id {max(category_ids)}")
        keep = list(range(len(category_ids))) if name.startswith("proposals.") else list(category_ids)
        selected[name] = rows[keep]
    return selected


def spread_classes(state: dict[str, Tensor], category_ids: Sequence[int], num_outputs: int) -> dict[str, Tensor]:
    """Undo :func:`select_classes`: outputs that stand for no category get weight 0 and a bias of -10."""
    spread = dict(state)
    for name, rows in _class_rows(state):
        if len(rows) != len(category_ids):
            raise ValueError(f"{name} has {len(rows)} outputs, but there are {len(category_ids)} category ids")
        full = rows.new_full((num_outputs, *rows.shape[1:]), 0.0 if name.endswith("weight") else _UNUSED_CLASS_BIAS)
        full[list(range(len(rows))) if name.startswith("proposals.") else list(category_ids)] = rows
        spread[name] = full
    return spread


def _class_rows(state: dict[str, Tensor]) -> list[tuple[str, Tensor]]:
    return [(name, value) for name, value in state.items() if _CLASS_ROWS.match(name)]


def _compile(source: str, target: str) -> tuple[re.Pattern, str]:
    pattern = re.escape(source).replace(re.escape("{n}"), r"(\d+)")
    groups = iter(range(1, 10))
    return re.compile(f"^{pattern}"), re.sub(r"\{n\}", lambda _: rf"\{next(groups)}", target)


def _rename(name: str, rules: list[tuple[re.Pattern, str]]) -> str | None:
    for pattern, target in rules:
        if pattern.match(name):
            return pattern.sub(target, name, count=1)
    return None


def _last_head(state: dict[str, Tensor], reverse: bool) -> int:
    pattern = r"^decoder\.heads\.(\d+)\." if reverse else r"(?:^|\.)class_embed\.(\d+)\."
    numbers = [int(match[1]) for match in (re.search(pattern, name) for name in state) if match]
    return max(numbers, default=-1) + (1 if reverse else 0)
