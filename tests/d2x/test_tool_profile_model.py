"""The profile of a detector."""

import json

import pytest
import torch
from torch import nn

from d2x.report.model_profile import profile_model, profile_table
from tests.plain_detr.builders import random_record, tiny_model
from tools.profile_model import main

CENTERX = "projects/CenterX/configs/quickstart.yaml"


class Toy(nn.Module):
    """One convolution and one matrix product, with numbers that can be counted by hand."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.linear = nn.Linear(4, 5)

    def forward(self, batch):
        images = torch.stack([one["image"] for one in batch])
        out = self.linear(self.conv(images).mean((2, 3)))
        return {"loss": out.square().sum()} if self.training else [{"scores": one} for one in out]


def test_counts_by_hand():
    found = profile_model(Toy().eval(), [{"image": torch.randn(3, 6, 8)}] * 2)
    costs = {one.name: one for one in found.modules}
    assert set(costs) == {"", "conv", "linear"}
    assert costs["conv"].parameters == 4 * 27 + 4 and costs[""].parameters == 4 * 27 + 4 + 25
    assert costs["conv"].flops == 2 * 4 * 6 * 8 * 27 and costs["linear"].flops == 2 * 5 * 4
    assert costs["conv"].kept >= 2 * 4 * 6 * 8 * 4 and costs[""].seconds > costs["conv"].seconds > 0
    assert found.backward_seconds is None


def test_training_has_a_backward_pass_and_stays_training():
    model = Toy().train()
    found = profile_model(model, [{"image": torch.randn(3, 6, 8)}])
    assert model.training and found.backward_seconds > 0
    assert "| backward |" in profile_table(found)


def test_attention_is_counted():
    model = tiny_model()
    found = profile_model(model, [random_record(64, 64, 0, 0)], depth=3)
    costs = {one.name: one for one in found.modules}
    assert costs["decoder.layers.0"].flops > 0 and costs["backbone"].flops > 0 and not found.uncounted
    assert costs[""].flops >= costs["backbone"].flops + costs["decoder"].flops
    assert costs["decoder.layers.0"].calls == 1


def test_command(tmp_path):
    words = ["--size", "64x96", "--train", "--threads", "1", "--output", str(tmp_path), "MODEL.DEVICE", "cpu"]
    main(["--config-file", CENTERX, *words])
    rows = json.loads((tmp_path / "profile.json").read_text())
    assert rows["backward_seconds"] > 0 and {"backbone", "head"} <= {one["name"] for one in rows["modules"]}
    assert "traceEvents" in json.loads((tmp_path / "trace.json").read_text())
    assert "| backbone |" in (tmp_path / "profile.md").read_text().replace("&nbsp;", "")


@pytest.mark.parametrize("words", [["--size", "64"], ["--batch", "0"], ["--depth", "0"]])
def test_errors(words):
    with pytest.raises(ValueError, match="--size|at least 1"):
        main(["--config-file", CENTERX, *words])
