"""Upstream parameter names to ours and back, and 91 class outputs to COCO's 80 and back.

The official Plain-DETR state dict holds the heads twice (``class_embed`` and ``transformer.decoder.class_embed``, and
the same for ``bbox_embed``); ours holds them once. The last of the official heads is the proposals'.
"""

import re
from collections.abc import Sequence

import torch
from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES
from torch import Tensor, nn

from d2x.checkpoint.conversion import Conversion, renaming

# (official, ours), with {n} and {m} for numbers that are kept. Order matters only between a name and its own prefix.
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
    ("transformer.decoder.layers.{n}.linear{m}.", "decoder.layers.{n}.feedforward.linear{m}."),
    ("transformer.decoder.final_layer_norm.", "decoder.final_norm."),
    ("transformer.encoder.layers.{n}.self_attn.", "encoder.layers.{n}.self_attention."),
    ("transformer.encoder.layers.{n}.norm1.", "encoder.layers.{n}.self_attention_norm."),
    ("transformer.encoder.layers.{n}.norm2.", "encoder.layers.{n}.feedforward_norm."),
    ("transformer.encoder.layers.{n}.linear{m}.", "encoder.layers.{n}.feedforward.linear{m}."),
    ("transformer.enc_output.", "proposals.output."),
    ("transformer.enc_output_norm.", "proposals.output_norm."),
    ("transformer.enc_output_proj.{n}.1.ln.", "proposals.levels.{n}.1."),
    ("transformer.enc_output_proj.{n}.4.ln.", "proposals.levels.{n}.4."),
    ("transformer.enc_output_proj.{n}.{m}.", "proposals.levels.{n}.{m}."),
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
    (_DINO + "blocks.{n}.ls{m}.gamma", _TIMM + "blocks.{n}.gamma_{m}"),
    # timm has no bias for the key, which the release masks: _split_bias and _join_bias do the rest.
    (_DINO + "blocks.{n}.attn.qkv.bias", _TIMM + "blocks.{n}.attn.q_bias"),
    (_DINO + "blocks.{n}.mlp.w1.", _TIMM + "blocks.{n}.mlp.fc1_g."),
    (_DINO + "blocks.{n}.mlp.w2.", _TIMM + "blocks.{n}.mlp.fc1_x."),
    (_DINO, _TIMM),
    ("backbone.0.net.body.", "backbone."),
]
# The end of a gated MLP; that of a plain one has timm's name in the release too.
_GATED_RULE = (_DINO + "blocks.{n}.mlp.w3.", _TIMM + "blocks.{n}.mlp.fc2.")

# Official entries without a counterpart: tables that follow from the window sizes, which biases are masked (the keys'),
# and what only pre-training uses. They come before the rules, for "qkv.bias" begins "qkv.bias_mask".
_DROPPED = re.compile(
    r"\.(relative_coords_table|relative_position_index|qkv\.bias_mask)$"
    rf"|^{re.escape(_DINO)}(mask_token$|rope_embed\.|local_cls_norm\.)"
)
_CLASS_ROWS = re.compile(r"^(decoder\.heads\.\d+|proposals\.head)\.class_logits\.(weight|bias)$")

# Category id of each of COCO's 80 contiguous classes: the row of an official class head that scores it.
COCO_IDS: list[int] = [category["id"] for category in COCO_CATEGORIES if category["isthing"]]
COCO_OUTPUTS = 91  # of an official COCO class head: one for each category id up to 90

# Layers with one output for each class, by our names.
CLASS_LAYERS: tuple[str, ...] = (".class_logits.",)

# Bias of class outputs that stand for no category (score 5e-5).
_UNUSED_CLASS_BIAS = -10.0

# Official names that repeat others: prefix before "class_embed." or "bbox_embed.".
ALIAS_PREFIX = "transformer.decoder."


def convert(state: dict[str, Tensor], *, reverse: bool = False, keep_outputs: bool = True) -> Conversion:
    """Rename an official state dict to ours, or ours to the official one with ``reverse``.

    Args:
        keep_outputs: class heads stay as they are, else the 91 outputs of an official COCO head become COCO's 80
            classes, and back with ``reverse``.
    """
    notes = []
    if reverse and not keep_outputs and _class_outputs(state) == len(COCO_IDS):
        state = spread_classes(state, COCO_IDS, COCO_OUTPUTS)
        notes.append(f"class heads: {len(COCO_IDS)} classes spread to {COCO_OUTPUTS} outputs")
    conversion = _rename_all(state, reverse)
    if not reverse and not keep_outputs and _class_outputs(conversion.state) == COCO_OUTPUTS:
        conversion = conversion._replace(state=select_classes(conversion.state, COCO_IDS))
        notes.append(f"class heads: COCO's {len(COCO_IDS)} classes of {COCO_OUTPUTS} outputs kept")
    return conversion._replace(notes=notes)


def _rename_all(state: dict[str, Tensor], reverse: bool) -> Conversion:
    gated = any(".mlp.w3." in name or ".mlp.fc1_g." in name for name in state)
    rules = [_GATED_RULE] * gated + HEAD_RULES + BACKBONE_RULES
    rename = renaming((new, old) if reverse else (old, new) for old, new in rules)
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
        target = rename(source)
        if target is None:
            unmatched.append(name)
            continue
        if reverse:
            target = target.replace("_embed.last.", f"_embed.{last}.")
            if target.startswith(("class_embed.", "bbox_embed.")):
                converted[ALIAS_PREFIX + target] = value
        converted[target] = value
        renamed[name] = target
        if not reverse and target.startswith(_TIMM) and target.endswith(".q_bias"):
            _split_bias(converted, target)
    if reverse:
        for name in [name for name in converted if name.startswith(_DINO) and name.endswith(".v_bias")]:
            _join_bias(converted, name)
    return Conversion(converted, renamed, unmatched, dropped)


def to_official(model: nn.Module, *, keep_outputs: bool = False) -> Conversion:
    """The official state dict of one of our detectors, with the tables our checkpoints leave out."""
    state = {**model.state_dict(), **{n: buffer for n, buffer in model.named_buffers() if _DROPPED.search(n)}}
    return convert(state, reverse=True, keep_outputs=keep_outputs)


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


def _class_outputs(state: dict[str, Tensor]) -> int | None:
    return next((len(rows) for _, rows in _class_rows(state)), None)


def _split_bias(state: dict[str, Tensor], name: str) -> None:
    """A bias (3 C,) of query, key and value under ``name`` becomes two (C,); the key's is 0 in every release."""
    query, _, value = state[name].chunk(3)
    state[name], state[name.replace(".q_bias", ".v_bias")] = query, value


def _join_bias(state: dict[str, Tensor], name: str) -> None:
    """Undo ``_split_bias``; ``name`` is the value's."""
    value, query = state.pop(name), name.replace(".v_bias", ".qkv.bias")
    state[query] = torch.cat([state[query], torch.zeros_like(value), value])


def _last_head(state: dict[str, Tensor], reverse: bool) -> int:
    pattern = r"^decoder\.heads\.(\d+)\." if reverse else r"(?:^|\.)class_embed\.(\d+)\."
    numbers = [int(match[1]) for match in (re.search(pattern, name) for name in state) if match]
    return max(numbers, default=-1) + (1 if reverse else 0)
