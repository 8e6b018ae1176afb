"""The mapper: boxes clipped or dropped, unreadable images skipped in training and named in evaluation."""

import copy
import logging

import numpy as np
import pytest
import torch
from detectron2.data import DatasetFromList, MapDataset, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image
from torch.utils.data import DataLoader

from d2x.config.keys import get_base_cfg
from d2x.data.augment import BoxCentreCrop
from d2x.data.mapper import MAX_BAD_IN_A_ROW, BadImageError, make_test_mapper, make_train_mapper


@pytest.fixture
def record(tmp_path):
    path = tmp_path / "good.png"
    Image.fromarray(np.arange(40 * 60 * 3, dtype=np.uint8).reshape(40, 60, 3)).save(path)
    return {"file_name": str(path), "height": 40, "width": 60, "image_id": 1, "annotations": [box(10, 5, 20, 30)]}


@pytest.fixture
def bad(tmp_path, record):
    path = tmp_path / "bad.png"
    path.write_bytes((tmp_path / "good.png").read_bytes()[:100])
    return {**record, "file_name": str(path)}


def box(x, y, w, h, category_id=0, **more):
    return {"bbox": [x, y, w, h], "bbox_mode": BoxMode.XYWH_ABS, "category_id": category_id, **more}


def make_cfg(*names):
    cfg = get_base_cfg()
    cfg.INPUT.FORMAT = "RGB"
    cfg.DATASETS.TRAIN = names
    return cfg


def test_train(record):
    before = copy.deepcopy(record)
    mapped = make_train_mapper(make_cfg(), [T.Resize((20, 30))])(record)
    assert mapped["image"].shape == (3, 20, 30) and mapped["image"].dtype == torch.uint8
    assert mapped["instances"].gt_boxes.tensor.tolist() == [[5, 2.5, 15, 17.5]]
    assert (mapped["height"], mapped["width"]) == (40, 60)
    assert "annotations" not in mapped and "labelled_classes" not in mapped
    assert record == before


def test_fast_decoding_follows_the_config(record, monkeypatch):
    asked = []

    def read(path, image_format, *, fast):
        asked.append((image_format, fast))
        return np.zeros((40, 60, 3), np.uint8)

    monkeypatch.setattr("d2x.data.mapper.read_image", read)
    cfg = make_cfg()
    for fast in (True, False):
        cfg.INPUT.FAST_DECODE = fast
        make_train_mapper(cfg, [])(record)
    assert asked == [("RGB", True), ("RGB", False)]


def test_boxes_are_dropped_or_clipped(record):
    record["annotations"] = [
        box(float("nan"), 5, 20, 30),
        box(0, 0, float("inf"), 5),
        box(10, 5, 0, 30),
        box(10, 5, -4, 30),
        box(70, 5, 10, 10),  # outside: nothing is left of it after clipping
        box(1, 1, 5, 5, iscrowd=1),
        box(-10, 30, 20, 30, category_id=2),
    ]
    instances = make_train_mapper(make_cfg(), [])(record)["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[0, 30, 10, 40]]
    assert instances.gt_classes.tolist() == [2]


@pytest.mark.parametrize("missing", [True, False])
def test_without_objects(record, missing):
    record["annotations"] = []
    if missing:
        del record["annotations"]
    instances = make_train_mapper(make_cfg(), [T.Resize((20, 30))])(record)["instances"]
    assert instances.gt_boxes.tensor.shape == (0, 4) and instances.gt_classes.dtype == torch.int64


def test_augmentations_see_the_boxes(record):
    record["annotations"] = [box(50, 30, 6, 6)]
    mapper = make_train_mapper(make_cfg(), [T.RandomApply(BoxCentreCrop("absolute", (12, 12)), prob=1.0)])
    assert all(len(mapper(record)["instances"]) == 1 for _ in range(20))


def test_test_mapper_gives_images_only(record):
    mapped = make_test_mapper(make_cfg(), [])(record)
    assert set(mapped) == {"file_name", "height", "width", "image_id", "image"}


def test_labelled_classes_come_from_record_or_metadata(record):
    MetadataCatalog.get("mapper_a").labelled_classes = [0, 2]
    MetadataCatalog.get("mapper_b").set(evaluator_type="coco")
    one = make_train_mapper(make_cfg("mapper_a"), [])(record)
    assert one["labelled_classes"].tolist() == [0, 2] and one["labelled_classes"].dtype == torch.int64
    assert one["dataset_name"] == "mapper_a"
    two = make_train_mapper(make_cfg("mapper_a", "mapper_b"), [])
    assert "labelled_classes" not in two(record)
    assert "labelled_classes" not in two({**record, "dataset_name": "mapper_b"})
    assert two({**record, "dataset_name": "mapper_a"})["labelled_classes"].tolist() == [0, 2]
    none = two({**record, "dataset_name": "mapper_a", "labelled_classes": []})["labelled_classes"]
    assert none.shape == (0,) and none.dtype == torch.int64
    for name in ("mapper_a", "mapper_b"):
        MetadataCatalog.remove(name)


def test_bad_image_is_reported_once_and_replaced(record, bad, caplog):
    mapper = make_train_mapper(make_cfg(), [])
    data = MapDataset(DatasetFromList([bad, record]), mapper)
    with caplog.at_level(logging.WARNING):
        assert [data[0]["file_name"] for _ in range(3)] == [record["file_name"]] * 3
    assert caplog.text.count(bad["file_name"]) == 1
    assert data._map_func.bad_files == {bad["file_name"]}


@pytest.mark.parametrize("change, words", [
    ({"file_name": "nowhere/none.jpg"}, "image not found: nowhere/none.jpg"),
    ({"width": 61}, "good.png.*60, 40.*61, 40"),
])  # fmt: skip
def test_missing_file_and_wrong_size_are_named(record, change, words):
    record.update(change)
    assert make_train_mapper(make_cfg(), [])(record) is None
    with pytest.raises(BadImageError, match=words):
        make_test_mapper(make_cfg(), [])(record)


def test_corrupt_image_in_evaluation_is_an_error_in_one_line(bad):
    with pytest.raises(ValueError, match="cannot read image .*bad.png") as caught:
        make_test_mapper(make_cfg(), [])(bad)
    assert "\n" not in str(caught.value)


def test_many_in_a_row_are_one_error(record, bad):
    mapper = make_train_mapper(make_cfg(), [])
    for _ in range(MAX_BAD_IN_A_ROW - 1):
        assert mapper(bad) is None
    assert mapper(record)  # a good one in between starts the count anew
    for _ in range(MAX_BAD_IN_A_ROW - 1):
        assert mapper(bad) is None
    with pytest.raises(BadImageError, match=f"{MAX_BAD_IN_A_ROW} unusable images in a row.*bad.png"):
        mapper(bad)


def test_error_from_a_worker_process_stays_one_line(bad):
    data = MapDataset(DatasetFromList([bad]), make_test_mapper(make_cfg(), []))
    with pytest.raises(BadImageError) as caught:
        next(iter(DataLoader(data, num_workers=1, collate_fn=list)))
    assert str(caught.value).startswith("cannot read image") and "\n" not in str(caught.value)
