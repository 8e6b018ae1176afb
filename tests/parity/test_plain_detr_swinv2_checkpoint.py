"""A SimMIM file fills Swin V2 as the released loader does."""

import pytest
import torch

from d2x.backbones.weights import load_backbone_weights
from tests.parity.golden import cases, load
from tests.parity.test_plain_detr_swinv2 import BUFFERS, assert_close, build


@pytest.mark.parametrize("case", cases("plain_detr", "swinv2_checkpoint"))
def test_file_fills_the_backbone(case, tmp_path):
    golden = load("plain_detr", case)
    options = golden.info["options"]
    path = tmp_path / "pretrained.pth"
    file = golden.group("input.checkpoint")
    torch.save({"model": file}, path)
    model = build(options["constructor"])
    initial = {name: value for name, value in golden.group("input.initial").items() if not name.endswith(BUFFERS)}
    model.load_state_dict(initial, strict=False)

    report = load_backbone_weights(model, str(path))

    state = {**model.state_dict(), **dict(model.named_buffers())}
    for name, theirs in options["loaded_from"].items():
        assert torch.equal(state[name], file[theirs]), name
    for name, value in golden.group("output.kept").items():
        if value.is_floating_point() and name.endswith(BUFFERS):
            torch.testing.assert_close(state[name], value, msg=lambda text, name=name: f"{name}: {text}")
        else:
            assert torch.equal(state[name], value), name
    kept = [name for name in golden.info["missing_keys"] if not name.endswith(BUFFERS)]
    assert sorted(report.missing) == sorted(kept)
    assert sorted([*report.matched, *report.renamed]) == sorted(options["loaded_from"])
    left_out = {name.removeprefix("encoder.") for name in report.left_out}
    assert set(golden.info["unexpected_keys"]) <= left_out

    maps = model(golden.tensors["input.image"])
    for i in options["constructor"]["out_indices"]:
        assert_close(
            maps[f"p{i + 2}"], golden.tensors[f"output.out{i}"], golden.info["tolerance"]["output"], f"stage {i}"
        )
