"""A user's json: classes, lazy records, and every kind of bad record reported, left out, and never written back."""

import json
import logging
import math

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader, get_detection_dataset_dicts
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from d2x.config.keys import get_base_cfg
from d2x.data.mapper import make_train_mapper
from d2x.data.rules.record_rules import box_numbers, box_rules
from d2x.data.sets.coco_json import register_coco_json


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Two images of 60 x 40 px, two objects, category ids 3 (dog) and 7 (cat) in the wrong order."""
    monkeypatch.setenv("D2X_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "images"
    folder.mkdir()
    for number in (1, 2):
        Image.fromarray(np.full((40, 60, 3), 50 * number, dtype=np.uint8)).save(folder / f"{number}.png")
    content = {
        "info": {},
        "images": [{"id": n, "file_name": f"{n}.png", "width": 60, "height": 40} for n in (1, 2)],
        "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
        "annotations": [annotation(1, image_id=1, category_id=7), annotation(2, image_id=2, category_id=3)],
    }
    names = []

    class Files:
        root, json_file = str(folder), str(tmp_path / "data.json")
        data = content

        def register(self, name="user_test", **more):
            with open(self.json_file, "w") as file:
                json.dump(self.data, file)
            names.append(name)
            return register_coco_json(name, self.json_file, self.root, **more)

    yield Files()
    for name in names:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
        if name in MetadataCatalog:
            MetadataCatalog.remove(name)


def annotation(number, image_id=1, category_id=7, bbox=(10, 5, 20, 30)):
    x, y, w, h = bbox
    return {
        "id": number,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [x, y, w, h],
        "area": w * h,
        "iscrowd": 0,
    }


def test_classes_follow_from_the_json_before_any_record_is_read(files):
    metadata = MetadataCatalog.get(files.register())
    assert metadata.thing_classes == ["dog", "cat"]
    assert metadata.thing_dataset_id_to_contiguous_id == {3: 0, 7: 1}
    assert metadata.evaluator_type == "coco" and metadata.image_root == files.root
    assert metadata.json_file == files.json_file  # nothing was wrong: no copy


def test_records(files):
    records = DatasetCatalog.get(files.register())
    assert [record["annotations"][0]["category_id"] for record in records] == [1, 0]
    assert records[0]["annotations"][0]["bbox_mode"] == BoxMode.XYWH_ABS
    assert {record["dataset_name"] for record in records} == {"user_test"}


def test_registering_again(files):
    files.register()
    assert register_coco_json("user_test", files.json_file, files.root) == "user_test"
    with pytest.raises(ValueError, match="user_test"):
        register_coco_json("user_test", files.json_file, files.root + "/..")


BAD = {
    "NaN or infinity": annotation(3, bbox=(math.nan, 5, 20, 30)),
    "zero or negative size": annotation(4, bbox=(10, 5, 0, 30)),
    "zero or negative": annotation(5, bbox=(10, 5, 10, -3)),
    "outside the image": annotation(6, bbox=(60, 5, 10, 10)),
    "not four numbers": {**annotation(7), "bbox": [1, 2, "3", 4]},
    "unknown category id": annotation(8, category_id=99),
    "unknown image id": annotation(9, image_id=99),
    "without bbox": {"id": 10, "image_id": 1, "category_id": 3},
    "without image_id": {"id": 11, "bbox": [1, 1, 5, 5], "category_id": 3},
    "annotations without": "text",
}


@pytest.mark.parametrize("reason", BAD)
def test_bad_annotation_is_counted_and_left_out(files, reason, caplog):
    files.data["annotations"].append(BAD[reason])
    with caplog.at_level(logging.WARNING):
        name = files.register()
    assert reason in caplog.text and "skipped 1 bad record" in caplog.text and files.json_file in caplog.text
    assert sum(len(record["annotations"]) for record in DatasetCatalog.get(name)) == 2


def test_the_users_file_is_untouched_and_evaluation_reads_a_clean_copy(files, tmp_path):
    files.data["annotations"] += list(BAD.values())
    name = files.register()
    metadata = MetadataCatalog.get(name)
    assert metadata.json_file.startswith(str(tmp_path / "cache"))
    with open(files.json_file) as file:
        assert len(json.load(file)["annotations"]) == 2 + len(BAD)
    assert len(list((tmp_path / "cache" / "cleaned").iterdir())) == 1

    evaluator = COCOEvaluator(name, tasks=("bbox",), output_dir=str(tmp_path / "out"))
    evaluator.reset()
    for image_id, category in ((1, 1), (2, 0)):
        found = Instances((40, 60), pred_boxes=Boxes([[10, 5, 30, 35]]), scores=np.ones(1))
        found.pred_classes = np.array([category])
        evaluator.process([{"image_id": image_id}], [{"instances": found}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100)


def test_evaluation_works_without_area_iscrowd_or_unique_ids(files, tmp_path):
    files.data.pop("info")
    for item in files.data["annotations"]:
        del item["area"], item["iscrowd"]
        item["id"] = 0
    with open(MetadataCatalog.get(files.register()).json_file) as file:
        cleaned = json.load(file)["annotations"]
    assert [item["id"] for item in cleaned] == [1, 2]
    assert all(item["area"] == 600 and item["iscrowd"] == 0 for item in cleaned)


@pytest.mark.parametrize("change, reason", [
    (lambda image: image.pop("width"), "without width"),
    (lambda image: image.update(id=2), "repeated id"),
    (lambda image: image.update(height=-1), "bad width or height"),
    (lambda image: image.update(file_name="none.png"), "missing"),
])  # fmt: skip
def test_bad_image_record_is_left_out_with_its_annotations(files, change, reason, caplog):
    files.data["images"].append({"id": 3, "file_name": "1.png", "width": 60, "height": 40})
    files.data["annotations"].append(annotation(3, image_id=3))
    change(files.data["images"][-1])
    name = files.register()
    assert reason in caplog.text
    assert len(DatasetCatalog.get(name)) == 2


def test_corrupt_image_of_a_small_data_set_is_left_out(files, caplog):
    with open(f"{files.root}/1.png", "r+b") as file:
        file.truncate(60)
    assert len(DatasetCatalog.get(files.register())) == 1
    assert "cannot be read (image 1.png)" in caplog.text


def test_nothing_left_is_an_error(files):
    for item in files.data["annotations"]:
        item["bbox"][2] = 0
    with pytest.raises(ValueError, match="no usable annotation.*zero or negative size"):
        files.register()
    assert "user_test" not in DatasetCatalog


def test_no_image_left_is_an_error(files):
    for image in files.data["images"]:
        image["file_name"] = "elsewhere.png"
    with pytest.raises(ValueError, match="no usable image.*missing"):
        files.register()


@pytest.mark.parametrize("key", ["images", "categories"])
@pytest.mark.parametrize("value", [None, []])
def test_missing_or_empty_part_is_named(files, key, value):
    files.data[key] = value
    if value is None:
        del files.data[key]
    with pytest.raises(ValueError, match=f"data.json.*{key}"):
        files.register()


def test_no_annotations_at_all_is_an_error(files):
    files.data["annotations"] = []
    with pytest.raises(ValueError, match="data.json.*no annotations"):
        files.register()


@pytest.mark.parametrize(
    "second", [{"id": 7, "name": "x"}, {"id": 9, "name": "cat"}, {"name": "x"}, {"id": "a", "name": "x"}]
)
def test_bad_category_is_an_error(files, second):
    files.data["categories"].append(second)
    with pytest.raises(ValueError, match="data.json: category 2"):
        files.register()


@pytest.mark.parametrize("text", ['{"images": [', "", "[1, 2]", "\x00"])
def test_broken_json_is_named(tmp_path, text):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="broken.json"):
        register_coco_json("broken", str(path), str(tmp_path))


def test_missing_paths_are_named(files, tmp_path):
    with pytest.raises(FileNotFoundError, match="none.json"):
        register_coco_json("x", str(tmp_path / "none.json"), files.root)
    files.root = str(tmp_path / "no_folder")
    with pytest.raises(FileNotFoundError, match="no_folder"):
        files.register()


def test_trains_through_detectron2s_loader(files):
    files.data["annotations"] += list(BAD.values())
    cfg = get_base_cfg()
    cfg.DATASETS.TRAIN = (files.register(labelled_classes=[1]),)
    cfg.DATALOADER.NUM_WORKERS, cfg.SOLVER.IMS_PER_BATCH, cfg.INPUT.FORMAT = 0, 2, "RGB"
    loader = build_detection_train_loader(cfg, mapper=make_train_mapper(cfg, []))
    batch = next(iter(loader))
    assert all(len(item["instances"]) == 1 and item["labelled_classes"].tolist() == [1] for item in batch)
    assert len(get_detection_dataset_dicts(cfg.DATASETS.TRAIN)) == 2


def test_cleaning_twice_changes_nothing_more(files, caplog):
    files.data["annotations"] += list(BAD.values())
    cleaned = MetadataCatalog.get(files.register()).json_file
    assert "skipped" in caplog.text
    caplog.clear()
    register_coco_json("user_test_again", cleaned, files.root)
    metadata = MetadataCatalog.get("user_test_again")
    DatasetCatalog.remove("user_test_again"), MetadataCatalog.remove("user_test_again")
    assert metadata.json_file == cleaned != files.json_file and "skipped" not in caplog.text


numbers = st.one_of(st.floats(), st.integers(-200, 200))


@settings(deadline=None)
@given(st.lists(numbers, min_size=4, max_size=4))
def test_a_box_passes_exactly_if_it_meets_the_image(box):
    x, y, w, h = box
    meets = all(map(math.isfinite, box)) and w > 0 and h > 0 and x < 60 and y < 40 and x + w > 0 and y + h > 0
    assert any(box_rules(*box_numbers(box), 60, 40)) == (not meets)


@settings(deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.text(max_size=3) | numbers, st.lists, max_leaves=6))
def test_any_value_as_a_box_is_judged_without_an_exception(value):
    found = box_numbers(value)
    assert found is None or (len(found) == 4 and all(type(number) is float for number in found))
