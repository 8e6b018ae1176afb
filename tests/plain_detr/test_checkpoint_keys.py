import pytest
import torch

import plain_detr  # noqa: F401
from plain_detr.checkpoint_keys import COCO_IDS, convert, select_classes, spread_classes, to_official
from tests.plain_detr.builders import tiny_model

CLASSES = "decoder.heads.0.class_logits."
OBJECT = "proposals.head.class_logits."


def heads(outputs: int) -> dict[str, torch.Tensor]:
    """Row r of every head holds the number r."""
    rows = torch.arange(float(outputs))
    return {
        name + part: rows if part == "bias" else rows[:, None].expand(outputs, 4).clone()
        for name in (CLASSES, OBJECT)
        for part in ("weight", "bias")
    }


def test_coco_ids_are_the_80_used_ones_of_90():
    # COCO has no category 12, 26, 29, 30, 45, 66, 68, 69, 71, 83.
    assert sorted(set(range(1, 91)) - set(COCO_IDS)) == [12, 26, 29, 30, 45, 66, 68, 69, 71, 83]


def test_selected_rows_follow_the_categories_but_not_for_objectness():
    state = select_classes(heads(5), [1, 4])
    assert state[CLASSES + "bias"].tolist() == [1, 4]
    assert state[CLASSES + "weight"][:, 0].tolist() == [1, 4]
    assert state[OBJECT + "bias"].tolist() == [0, 1]


def test_spread_rows_return_and_unused_ones_never_score():
    selected = select_classes(heads(5), [1, 4])
    state = spread_classes(selected, [1, 4], 5)
    assert state[CLASSES + "bias"].tolist() == [-10, 1, -10, -10, 4]
    assert state[CLASSES + "weight"][:, 0].tolist() == [0, 1, 0, 0, 4]
    assert select_classes(state, [1, 4]).keys() == selected.keys()
    assert all(torch.equal(value, selected[name]) for name, value in select_classes(state, [1, 4]).items())


def test_a_head_too_small_for_the_categories_is_named():
    with pytest.raises(ValueError, match="heads.0.class_logits.weight has 5 outputs, too few for category id 90"):
        select_classes(heads(5), COCO_IDS)
    with pytest.raises(ValueError, match="has 5 outputs, but there are 80 category ids"):
        spread_classes(heads(5), COCO_IDS, 91)


def test_dinov3s_bias_is_split_and_the_keys_part_comes_back_as_zeros():
    block = "backbone.0._backbone.backbone.blocks.3.attn."
    state = {block + "qkv.bias": torch.arange(6.0), block + "qkv.bias_mask": torch.ones(6)}
    conversion = convert(state)
    ours = {name: value.tolist() for name, value in conversion.state.items()}
    assert ours == {
        "backbone.model.blocks.3.attn.q_bias": [0, 1],
        "backbone.model.blocks.3.attn.v_bias": [4, 5],
    }
    assert conversion.dropped == [block + "qkv.bias_mask"]
    assert conversion.renamed == {block + "qkv.bias": "backbone.model.blocks.3.attn.q_bias"}
    for order in (1, -1):
        back = convert(dict(list(conversion.state.items())[::order]), reverse=True)
        assert {name: value.tolist() for name, value in back.state.items()} == {block + "qkv.bias": [0, 1, 0, 0, 4, 5]}


def test_unknown_names_are_reported_and_the_rest_is_converted():
    state = {"transformer.level_embed": torch.zeros(1, 4), "transformer.new_part.weight": torch.zeros(1)}
    conversion = convert(state)
    assert list(conversion.state) == ["level_embed"]
    assert conversion.unmatched == ["transformer.new_part.weight"]


def test_our_model_goes_there_and_back_unchanged():
    model = tiny_model()
    official = to_official(model, keep_outputs=True)
    assert official.unmatched == []
    state = convert(official.state).state
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
