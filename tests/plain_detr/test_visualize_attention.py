"""The picture of attention maps, from a config file and a checkpoint."""

import cv2
import numpy as np
import pytest
import torch

from plain_detr.attention_maps import draw_attention, query_attention
from tests.plain_detr.builders import VARIANTS, record, tiny_config, tiny_model
from tools.visualize_attention import main


@pytest.fixture
def run(tmp_path):
    """Builds a run's folder: config, weights and one image; returns the command's arguments."""

    def build(**changes):
        cfg = tiny_config(**changes)
        cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (), ()
        cfg.DATASETS.CLASS_NAMES = ["disc", "ring", "bar"]
        cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
        torch.save({"model": tiny_model(**changes).state_dict()}, cfg.MODEL.WEIGHTS)
        (tmp_path / "config.yaml").write_text(cfg.dump())
        image = np.random.default_rng(0).integers(0, 255, (70, 90, 3), dtype=np.uint8)
        cv2.imwrite(str(tmp_path / "image.png"), image)
        return [
            "--config-file", str(tmp_path / "config.yaml"),
            "--input", str(tmp_path / "image.png"),
            "--output", str(tmp_path / "out" / "attention.png"),
        ]  # fmt: skip

    return build


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_picture_with_three_columns_a_query(run, variant):
    output = main([*run(**VARIANTS[variant]), "--count", "2", "--cell", "100", "INPUT.MIN_SIZE_TEST", "64"])
    picture = cv2.imread(str(output))
    height, width = picture.shape[:2]
    assert width == 3 * (100 + 8) and height > 2 * 70
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 100


def test_chosen_queries_and_layer(run, capsys):
    main([*run(), "--query", "5", "--query", "0", "--layer", "0", "INPUT.MIN_SIZE_TEST", "0"])
    assert "attention of queries [5, 0]" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--query", "99"], "the model has 8"),
        (["--layer", "2"], "decoder layer 2: the model has 2"),
        (["--count", "0"], "at least 1"),
        (["--input", "nowhere.png"], "input not found: nowhere.png"),
    ],
)
def test_errors(run, words, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        main([*run(), *words, "INPUT.MIN_SIZE_TEST", "0"])


def test_best_queries_come_first_and_boxes_lie_in_the_image():
    model = tiny_model()
    found = query_attention(model, record(70, 90)["image"], count=5)
    assert (found.scores.diff() <= 0).all() and len(found.query.unique()) == 5
    assert (found.boxes >= 0).all() and (found.boxes <= torch.tensor([90.0, 70, 90, 70])).all()
    torch.testing.assert_close(found.with_bias.sum((1, 2)), torch.ones(5))


def test_the_hottest_cell_is_drawn_where_it_is():
    attention = torch.zeros(4, 6)
    attention[1, 4] = 1
    picture = draw_attention(np.zeros((60, 90, 3), np.uint8), attention, torch.tensor([0.0, 0, 5, 5]), stride=16)
    red = picture[..., 0].astype(int) - picture[..., 2]
    row, column = np.unravel_index(red.argmax(), red.shape)
    assert 16 <= row < 32 and 64 <= column < 80
