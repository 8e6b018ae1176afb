"""Names and shapes of every released Plain-DETR model, through the convert tool: none unmatched, the same ones back."""

import pytest
import torch

from plain_detr.checkpoint_keys import ALIAS_PREFIX, COCO_IDS
from tests.parity.golden import cases, load
from tools.convert_checkpoint import convert


@pytest.mark.parametrize("case", cases("plain_detr", "checkpoint_keys"))
def test_every_released_name_is_known(case):
    info = load("plain_detr", case).info
    released = {name: torch.empty(shape, device="meta") for name, shape in info["keys"].items()}
    prefix = info.get("backbone_prefix_inside_detector", "")
    backbone = info.get("backbone_keys", {})
    released |= {prefix + name: torch.empty(shape, device="meta") for name, shape in backbone.items()}

    report = convert("plain_detr", released)
    assert report.unmatched == []
    assert not set(report.dropped) & set(info["keys"]) - set(info["buffers"])
    heads = [value for name, value in report.state.items() if "class_logits" in name]
    outputs = {len(value) for name, value in released.items() if "class_embed" in name}
    assert {len(head) for head in heads} == ({len(COCO_IDS)} if outputs == {91} else outputs)

    back = convert("plain_detr", report.state, reverse=True)
    assert back.unmatched == []
    aliases = {name for name in back.state if name.startswith((f"{ALIAS_PREFIX}class_", f"{ALIAS_PREFIX}bbox_"))}
    assert set(back.state) - aliases == set(released) - set(report.dropped) - aliases
    assert {name: value.shape for name, value in back.state.items() if name in released} == {
        name: released[name].shape for name in back.state if name in released
    }
