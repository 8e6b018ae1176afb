import json

import cv2
import numpy as np
import pytest
from PIL import Image

from tools.visualize_data import choose, main

CONFIG = "projects/CenterX/configs/quickstart.yaml"


@pytest.fixture
def mine(tmp_path):
    """A json with three images, one of which turns out to be broken only after it was registered."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(np.full((60, 80, 3), 60 * number, np.uint8)).save(folder / f"{number}.png")
    content = {
        "images": [{"id": i + 1, "file_name": f"{i}.png", "width": 80, "height": 60} for i in range(3)],
        "annotations": [
            {"id": i + 1, "image_id": i + 1, "category_id": 5, "bbox": [10, 10, 30, 20], "area": 600, "iscrowd": 0}
            for i in range(3)
        ],
        "categories": [{"id": 5, "name": "thing"}],
    }
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(content))
    return ["--json", str(path), "--images", str(folder)]


@pytest.fixture(autouse=True)
def forget_user_data():
    yield
    from detectron2.data import DatasetCatalog, MetadataCatalog

    for catalog in (DatasetCatalog, MetadataCatalog):
        if "user_data" in catalog.list():
            catalog.remove("user_data")


def test_a_grid_of_your_own_data(mine, tmp_path):
    output = main([*mine, "--output", str(tmp_path / "out" / "grid.png"), "--width", "100", "--columns", "3"])
    height, width = cv2.imread(str(output)).shape[:2]
    assert width == 3 * (100 + 8)
    assert height >= 75 + 22


def test_a_picture_of_each_image_with_augmented_samples(mine, tmp_path):
    arguments = ["--config-file", CONFIG, "--samples", "2", "--width", "90", "--count", "2"]
    output = main([*mine, *arguments, "--output", str(tmp_path / "each")])
    pictures = sorted(output.iterdir())
    assert [path.name for path in pictures] == ["0000_0.png", "0001_2.png"]
    assert cv2.imread(str(pictures[0])).shape[1] == 3 * 90 + 2 * 4 + 8


def test_an_unreadable_image_is_reported_and_left_out(mine, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("d2x.data.rules.image_files.DECODE_UP_TO", 0)
    (tmp_path / "images" / "1.png").write_bytes(b"no image")
    output = main([*mine, "--output", str(tmp_path / "grid.png")])
    captured = capsys.readouterr()
    assert output.exists()
    assert "user_data: 2 of 3 images, classes thing" in captured.out
    assert "skipped" in captured.err and "1.png" in captured.err


def test_a_data_set_with_no_readable_image_is_an_error(mine, tmp_path, monkeypatch):
    monkeypatch.setattr("d2x.data.rules.image_files.DECODE_UP_TO", 0)
    for path in (tmp_path / "images").iterdir():
        path.write_bytes(b"no image")
    with pytest.raises(ValueError, match="none of 3 images could be drawn; the first: .*0.png"):
        main([*mine, "--output", str(tmp_path / "grid.png")])


def test_an_unknown_data_set_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="unknown data set 'shapes_trian'; did you mean .*shapes_train"):
        main(["--dataset", "shapes_trian"])


@pytest.mark.parametrize(
    "arguments",
    [[], ["--json", "a.json"], ["--dataset", "a", "INPUT.FORMAT", "BGR"], ["--dataset", "a", "--count", "0"]],
)
def test_arguments_that_do_not_go_together(arguments, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert "error:" in capsys.readouterr().err


def test_records_are_evenly_spread_or_random():
    records = [{"n": n} for n in range(10)]
    assert [record["n"] for record in choose(records, 4, shuffle=False, seed=0)] == [0, 3, 6, 9]
    assert len(choose(records, 40, shuffle=False, seed=0)) == 10
    assert choose(records, 4, shuffle=True, seed=1) == choose(records, 4, shuffle=True, seed=1)
