"""Weights of another variant are refused, those of the same one and parts of it are not."""

import pytest
import torch

from d2x.checkpoint.files import Checkpointer
from tests.plain_detr.builders import VARIANTS, tiny_model


def saved(tmp_path, model) -> str:
    Checkpointer(model, str(tmp_path)).save("weights")
    return str(tmp_path / "weights.pth")


def test_the_same_variant_loads(tmp_path):
    model, other = tiny_model(), tiny_model()
    for parameter in other.parameters():
        torch.nn.init.zeros_(parameter)
    Checkpointer(other).load(saved(tmp_path, model))
    for (name, one), two in zip(model.state_dict().items(), other.state_dict().values()):
        assert torch.equal(one, two), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (VARIANTS["sigmoid"], "BOX_CODER delta, not sigmoid; POSITION_ENCODING sine_unnorm, not sine"),
        (VARIANTS["absolute"], "BOX_RPB.KIND axial, not none"),
        ({"BOX_RPB.KIND": "full"}, "BOX_RPB.KIND axial, not full"),
        ({"BOX_RPB.OFFSETS": "abs_log8"}, "BOX_RPB.OFFSETS linear, not abs_log8"),
        ({"PROPOSALS.STRIDES": (16, 32)}, r"PROPOSALS.STRIDES \[8, 16, 32, 64\], not \[16, 32\]"),
        ({"DECODER_LAYERS": 3}, "lacks .* tensors such as decoder.heads.2"),
        ({"DECODER_LAYERS": 1}, "has .* that the model has not, such as decoder.heads.1"),
        ({"ENCODER.LAYERS": 1}, "lacks .* tensors such as encoder.layers.0"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_another_variant_is_one_error(tmp_path, changes, message):
    path = saved(tmp_path, tiny_model())
    with pytest.raises(ValueError, match=message):
        Checkpointer(tiny_model(**changes)).load(path)


def test_without_metadata_the_names_decide():
    state = dict(tiny_model().state_dict())
    tiny_model().load_state_dict(state)
    with pytest.raises(ValueError, match="that the model has not, such as decoder.layers.0.cross_attention.box_rpb"):
        tiny_model(**VARIANTS["absolute"]).load_state_dict(state)


def test_a_backbone_alone_and_a_file_without_classes_load():
    state = tiny_model().state_dict()
    other = tiny_model(NUM_CLASSES=5)
    backbone = {name: value for name, value in state.items() if name.startswith("backbone.")}
    assert not other.load_state_dict(backbone, strict=False).unexpected_keys
    rest = {name: value for name, value in state.items() if ".class_logits." not in name}
    assert not other.load_state_dict(rest, strict=False).unexpected_keys
