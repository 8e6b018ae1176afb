"""COCO jsons that detectron2 has registered are trained on from our index, with the records detectron2 would give."""

import copy
import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from detectron2.data.datasets import load_coco_json, register_coco_instances

from d2x.data.index import cache as coco_cache
from d2x.data.index.cache import index_path
from d2x.data.index.coco_index import IndexedRecords
from d2x.data.sets.builtin import register_builtin
from d2x.data.sets.merged import register_merged
from d2x.data.sets.registered_coco import has_index, read_records
from d2x.data.sets.training_set import training_records

NAME = "registered_coco_test"


@pytest.fixture(autouse=True)
def _cache_and_catalogue(tmp_path, monkeypatch):
    """detectron2's catalogue is one for the whole process: afterwards it is as before."""
    monkeypatch.setenv("D2X_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(DatasetCatalog, "data", dict(DatasetCatalog.data))
    monkeypatch.setattr(MetadataCatalog, "data", copy.deepcopy(MetadataCatalog.data))


@pytest.fixture
def data(tmp_path):
    """(json, folder): two categories with a gap, polygons; image 3 has a crowd alone, image 4 nothing."""
    box, polygon = [2, 3, 10.5, 8], [[2, 3, 12, 3, 12, 11]]
    content = {
        "info": {},
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 40 + i, "height": 42} for i in (4, 2, 3, 1)],
        "annotations": [
            {"id": n, "image_id": image, "category_id": kind, "bbox": box, "area": 84, "iscrowd": crowd,
             "segmentation": polygon}
            for n, (image, kind, crowd) in enumerate([(2, 7, 0), (1, 3, 0), (1, 7, 1), (3, 3, 1)], start=1)
        ],
        "categories": [{"id": 7, "name": "seven"}, {"id": 3, "name": "three"}],
    }  # fmt: skip
    path, folder = tmp_path / "data.json", tmp_path / "images"
    path.write_text(json.dumps(content))
    folder.mkdir()
    return path, folder


def change(path, change) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def without_polygons(records) -> list[dict]:
    boxes = ({k: v for k, v in one.items() if k != "segmentation"} for r in records for one in r["annotations"])
    return [{**record, "annotations": [next(boxes) for _ in record["annotations"]]} for record in records]


@pytest.mark.parametrize("filter_empty", [True, False])
def test_the_records_are_detectron2s(data, filter_empty):
    register_coco_instances(NAME, {}, *data)
    expected = without_polygons(get_detection_dataset_dicts(NAME, filter_empty=filter_empty))
    classes = MetadataCatalog.get(NAME).thing_classes, MetadataCatalog.get(NAME).thing_dataset_id_to_contiguous_id
    assert classes == (["three", "seven"], {3: 0, 7: 1})
    assert len(expected) == (2 if filter_empty else 4)
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)
    register_coco_instances(NAME, {}, *data)
    ours = training_records([NAME], filter_empty=filter_empty)
    assert isinstance(ours, IndexedRecords)
    assert list(ours) == [{**record, "dataset_name": NAME} for record in expected]
    metadata = MetadataCatalog.get(NAME)
    assert (metadata.thing_classes, metadata.thing_dataset_id_to_contiguous_id) == classes


def test_coco_itself_is_read_so_and_what_is_something_else_is_not(data):
    for name in ("coco_2017_train", "coco_2017_val", "coco_2014_train"):
        assert has_index(name), name
    others = ["keypoints_coco_2017_train", "lvis_v1_train", "voc_2007_train", "cityscapes_fine_instance_seg_train"]
    DatasetCatalog.register(NAME, lambda: load_coco_json(*map(str, data), NAME)[:1])
    MetadataCatalog.get(NAME).set(json_file=str(data[0]), image_root=str(data[1]), evaluator_type="coco")
    register_coco_instances(f"{NAME}_url", {}, "https://images.example/a.json", str(data[1]))
    for name in (*others, NAME, f"{NAME}_url"):
        assert not has_index(name), name
    assert len(training_records([NAME], filter_empty=False)) == 1


def test_a_large_json_is_parsed_once(data, monkeypatch):
    monkeypatch.setattr(coco_cache, "KEEP_FROM_BYTES", 0)
    monkeypatch.setattr(coco_cache.open_index, "__kwdefaults__", {"need_images": True, "keep_from": 0})
    register_coco_instances(NAME, {}, *data)
    first = read_records(NAME)
    kept = index_path(*map(str, data), False)
    assert first.coco_index.path == kept
    before = kept.stat()
    assert list(read_records(NAME)) == list(first) and kept.stat() == before


def test_a_bad_record_is_left_out_and_reported(data, caplog):
    change(data[0], lambda content: content["annotations"][0].update(bbox=[2, 3, 0, 8]))
    register_coco_instances(NAME, {}, *data)
    assert [record["image_id"] for record in training_records([NAME], filter_empty=True)] == [1]
    assert "data.json: skipped 1 bad records: 1 annotations with zero or negative size" in caplog.text


def test_other_classes_than_registered_are_one_line(data):
    register_coco_instances(NAME, {"thing_classes": ["one", "two", "three"]}, *data)
    with pytest.raises(ValueError, match=rf"data.json: its categories \(2, .*'three'\).* '{NAME}' is .* with \(3\)$"):
        training_records([NAME], filter_empty=True)


def test_missing_files_are_named(data, tmp_path):
    register_coco_instances(NAME, {}, tmp_path / "no.json", data[1])
    register_coco_instances(f"{NAME}_2", {}, data[0], tmp_path / "no_folder")
    for name, words in (
        (NAME, "annotation file not found: .*no.json"),
        (f"{NAME}_2", "image folder not found: .*no_f"),
    ):
        with pytest.raises(FileNotFoundError, match=f"data set '{name}': {words}.*DETECTRON2_DATASETS"):
            training_records([name], filter_empty=True)


def test_a_source_of_a_merged_set(data):
    register_coco_instances(NAME, {}, *data)
    merged = DatasetCatalog.get(register_merged(f"{NAME}_merged", [NAME], ["seven"]))
    assert [len(record["annotations"]) for record in merged] == [1, 1, 0, 0]
    assert "segmentation" not in merged[0]["annotations"][0]


def test_objects365_is_filtered_the_first_time_too(data, tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_builtin()
    root = tmp_path / "objects365"
    (root / "annotations").mkdir(parents=True)
    data[0].rename(root / "annotations/zhiyuan_objv2_train.json")
    data[1].rename(root / "train")
    counts = [len(training_records(["objects365_train"], filter_empty=True)) for _ in range(2)]
    assert counts == [2, 2]
