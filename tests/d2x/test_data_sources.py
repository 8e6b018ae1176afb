"""Data sets of different classes joined by the config."""

import json

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog, get_detection_dataset_dicts
from PIL import Image

import centerx  # noqa: F401
from d2x.config.keys import get_base_cfg
from d2x.config.load import load_cfg
from d2x.data.prepare import prepare_data
from d2x.data.sets.sources import join_sources


def coco(folder, name, kind):
    """A json of one image with one box of one class."""
    images = folder / f"{name}_images"
    images.mkdir()
    Image.new("RGB", (20, 10)).save(images / "0.png")
    content = {
        "images": [{"id": 1, "file_name": "0.png", "height": 10, "width": 20}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 7, "bbox": [1, 2, 5, 6], "area": 30, "iscrowd": 0}],
        "categories": [{"id": 7, "name": kind}],
    }
    (folder / f"{name}.json").write_text(json.dumps(content))
    return [str(folder / f"{name}.json"), str(images)]


@pytest.fixture
def two(tmp_path, monkeypatch):
    monkeypatch.setenv("D2X_CACHE", str(tmp_path / "cache"))
    return coco(tmp_path, "a", "person"), coco(tmp_path, "b", "face")


def test_training_images_know_what_they_are_labelled_for(two):
    cfg = get_base_cfg()
    cfg.DATASETS.TRAIN_SOURCES = list(two)
    join_sources(cfg)
    assert cfg.DATASETS.CLASS_NAMES == ["person", "face"]
    records = get_detection_dataset_dicts(list(cfg.DATASETS.TRAIN))
    assert [record["labelled_classes"] for record in records] == [[0], [1]]
    assert [record["annotations"][0]["category_id"] for record in records] == [0, 1]
    assert MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).labelled_classes == [0, 1]


def test_each_validation_set_stays_alone_in_the_joint_classes(two):
    cfg = get_base_cfg()
    cfg.DATASETS.CLASS_NAMES = ["face", "person"]
    cfg.DATASETS.VAL_SOURCES = list(two)
    join_sources(cfg)
    assert len(cfg.DATASETS.TEST) == 2
    assert DatasetCatalog.get(cfg.DATASETS.TEST[0])[0]["annotations"][0]["category_id"] == 1
    assert MetadataCatalog.get(cfg.DATASETS.TEST[1]).thing_classes == ["face", "person"]


def test_folders_without_labels_need_class_names(two):
    cfg = get_base_cfg()
    cfg.DATASETS.TRAIN_SOURCES = [two[0][1], two[1][1]]
    cfg.DATASETS.TEST = ()
    with pytest.raises(ValueError, match="DATASETS.CLASS_NAMES must say the classes"):
        join_sources(cfg)
    cfg.DATASETS.CLASS_NAMES = ["person"]
    join_sources(cfg)
    assert [record["labelled_classes"] for record in DatasetCatalog.get(cfg.DATASETS.TRAIN[0])] == [[], []]


def test_saved_config_registers_again(two, tmp_path):
    opts = ["MODEL.META_ARCHITECTURE", "CenterNet", "DATASETS.TRAIN_SOURCES", str(list(two))]
    opts += ["DATASETS.VAL_SOURCES", str([two[0]])]
    cfg = prepare_data(load_cfg(None, opts))
    (tmp_path / "saved.yaml").write_text(cfg.dump())
    again = prepare_data(load_cfg(str(tmp_path / "saved.yaml")))
    assert again.DATASETS.TRAIN == cfg.DATASETS.TRAIN and again.MODEL.CENTERNET.NUM_CLASSES == 2


def test_unknown_source_is_named():
    cfg = get_base_cfg()
    cfg.DATASETS.TRAIN_SOURCES = ["nowhere"]
    with pytest.raises(FileNotFoundError, match="'nowhere' is neither a registered data set nor a folder"):
        join_sources(cfg)
    cfg.DATASETS.TRAIN_SOURCES = [["a.json"]]
    with pytest.raises(ValueError, match=r"a source must be a name, a folder or \[json, image folder\]"):
        join_sources(cfg)
