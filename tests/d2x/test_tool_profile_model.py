"""The profile of a detector."""

import json

import pytest
import torch
from torch import nn

from d2x.report.model_profile import noise_batch, profile_model, profile_table
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
    costs = {one["name"]: one for one in found.modules}
    assert set(costs) == {"", "conv", "linear"}
    assert costs["conv"]["parameters"] == 4 * 27 + 4 and costs[""]["parameters"] == 4 * 27 + 4 + 25
    assert costs["conv"]["flops"] == 2 * 4 * 6 * 8 * 27 and costs["linear"]["flops"] == 2 * 5 * 4
    assert costs["conv"]["kept"] >= 2 * 4 * 6 * 8 * 4 and costs[""]["seconds"] > costs["conv"]["seconds"] > 0
    assert found.backward_seconds is None


def test_the_table_shares_out_the_whole():
    table = profile_table(profile_model(Toy().eval(), [{"image": torch.randn(3, 600, 800)}] * 2)).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table if line.startswith("| ")]
    assert [row[:5] for row in cells[:2]] == [
        ["module", "", "parameters", "GFLOPs", "calls"],
        ["all", "Toy", "137", "0.10", "1"],  # 2 images x 480,000 pixels x 4 channels x 27 weights
    ]
    assert cells[1][6] == "100%" and [row[0] for row in cells[2:]] == ["conv", "linear"]


def test_what_fvcore_has_no_rule_for_is_named():
    @torch.library.custom_op("test_profile::twice", mutates_args=())
    def twice(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    class Custom(Toy):
        def forward(self, batch):
            return [{"scores": twice(one["scores"])} for one in super().forward(batch)]

    found = profile_model(Custom().eval(), [{"image": torch.randn(3, 6, 8)}] * 2)
    assert found.uncounted == {"test_profile::twice": 2}
    assert "Not counted: test_profile::twice (2 times)." in profile_table(found)


def test_the_noise_is_valid_and_always_the_same():
    first, second = noise_batch(2, (40, 90), 3), noise_batch(2, (40, 90), 3)
    for one, other in zip(first, second, strict=True):
        assert one["image"].shape == (3, 40, 90) and torch.equal(one["image"], other["image"])
        x0, y0, x1, y1 = one["instances"].gt_boxes.tensor.unbind(1)
        assert (x0 >= 0).all() and (y0 >= 0).all() and (x1 - x0 >= 4).all() and (y1 - y0 >= 2).all()
        assert (x1 <= 90).all() and (y1 <= 40).all() and one["instances"].gt_classes.max() < 3
    assert not torch.equal(first[0]["image"], first[1]["image"])


def test_training_has_a_backward_pass_and_stays_training():
    model = Toy().train()
    found = profile_model(model, [{"image": torch.randn(3, 6, 8)}])
    assert model.training and found.backward_seconds > 0
    assert "| backward |" in profile_table(found)


def test_attention_is_counted():
    model = tiny_model()
    found = profile_model(model, [random_record(64, 64, 0, 0)], depth=3)
    costs = {one["name"]: one for one in found.modules}
    assert costs["decoder.layers.0"]["flops"] > 0 and costs["backbone"]["flops"] > 0 and not found.uncounted
    assert costs[""]["flops"] >= costs["backbone"]["flops"] + costs["decoder"]["flops"]
    assert costs["decoder.layers.0"]["calls"] == 1


def test_command(tmp_path):
    words = ["--size", "64x96", "--train", "--threads", "1", "--output", str(tmp_path), "MODEL.DEVICE", "cpu"]
    main(["--config-file", CENTERX, *words])
    rows = json.loads((tmp_path / "profile.json").read_text())
    assert rows["backward_seconds"] > 0 and {"backbone", "head"} <= {one["name"] for one in rows["modules"]}
    assert "traceEvents" in json.loads((tmp_path / "trace.json").read_text())
    assert "\n| backbone " in (tmp_path / "profile.md").read_text()
    operations = (tmp_path / "operations.txt").read_text()
    assert "aten::convolution" in operations and "Self CPU time total" in operations


@pytest.mark.parametrize("words", [["--size", "64"], ["--batch", "0"], ["--depth", "0"]])
def test_errors(words):
    with pytest.raises(ValueError, match="--size|at least 1"):
        main(["--config-file", CENTERX, *words])
