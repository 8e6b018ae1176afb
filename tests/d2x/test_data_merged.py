"""Data sets labelled for different classes as one, and image folders without labels."""

import logging

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_train_loader
from detectron2.structures import BoxMode
from PIL import Image

from d2x.config.keys import get_base_cfg
from d2x.data.mapper import make_train_mapper
from d2x.data.sets.merged import register_image_folder, register_merged


@pytest.fixture
def catalog(tmp_path):
    """``add(name, classes, {file: [category ids]}, **metadata)`` registers a data set; all are removed afterwards."""
    before = set(DatasetCatalog)

    def add(name, classes, images, **metadata):
        records = []
        for file, categories in images.items():
            path = tmp_path / file
            if not path.exists():
                Image.fromarray(np.zeros((32, 32, 3), dtype=np.uint8)).save(path)
            boxes = [{"bbox": [1, 2, 9, 9 + c], "bbox_mode": BoxMode.XYXY_ABS, "category_id": c} for c in categories]
            records.append({"file_name": str(path), "height": 32, "width": 32, "image_id": 1, "annotations": boxes})
        DatasetCatalog.register(name, lambda: records)
        MetadataCatalog.get(name).set(thing_classes=classes, **metadata)
        return name

    yield add
    for name in set(DatasetCatalog) - before:
        DatasetCatalog.remove(name)
        if name in MetadataCatalog:
            MetadataCatalog.remove(name)


def summary(name):
    return [
        (
            record["file_name"].split("/")[-1],
            [annotation["category_id"] for annotation in record["annotations"]],
            record["labelled_classes"],
        )
        for record in DatasetCatalog.get(name)
    ]


def test_union_by_class_name(catalog):
    catalog("animals", ["cat", "dog", "cow"], {"a.png": [0, 1, 2], "b.png": []})
    catalog("people", ["person", "dog"], {"c.png": [0, 1]}, labelled_classes=[0])
    register_merged("both", ["animals", "people"], ["person", "cat", "dog"])
    # cow is not wanted; people's dog is not labelled everywhere, so its boxes are no full labels
    assert summary("both") == [("a.png", [1, 2], [1, 2]), ("b.png", [], [1, 2]), ("c.png", [0], [0])]
    assert MetadataCatalog.get("both").thing_classes == ["person", "cat", "dog"]
    assert [record["image_id"] for record in DatasetCatalog.get("both")] == [1, 2, 3]


def test_same_file_in_two_sources_is_one_record(catalog):
    catalog("first", ["cat", "dog"], {"a.png": [0, 1]})
    catalog("second", ["dog", "cow"], {"a.png": [0, 0, 1]})
    register_merged("one", ["first", "second"], ["cat", "dog", "cow"])
    assert summary("one") == [("a.png", [0, 1, 2], [0, 1, 2])]


def test_sources_are_left_alone(catalog):
    catalog("source", ["cat", "dog"], {"a.png": [1]})
    register_merged("reordered", ["source"], ["dog", "cat"])
    assert summary("reordered") == [("a.png", [0], [0, 1])]
    assert DatasetCatalog.get("source")[0]["annotations"][0]["category_id"] == 1


def test_a_merged_set_can_be_merged_again(catalog):
    catalog("x", ["cat"], {"a.png": [0]})
    catalog("y", ["dog"], {"b.png": [0]})
    register_merged("xy", ["x", "y"], ["cat", "dog"])
    register_merged("yx", ["xy"], ["dog", "cat"])
    assert summary("yx") == [("a.png", [1], [1]), ("b.png", [0], [0])]


def test_class_nobody_is_labelled_for_is_reported(catalog, caplog):
    catalog("cats", ["cat"], {"a.png": [0]})
    register_merged("with_horse", ["cats"], ["cat", "horse"])
    with caplog.at_level(logging.WARNING):
        DatasetCatalog.get("with_horse")
    assert "horse" in caplog.text


def test_wrong_arguments(catalog):
    catalog("s", ["cat"], {"a.png": [0]})
    with pytest.raises(ValueError, match="unknown source 'nothing'"):
        register_merged("m", ["nothing"], ["cat"])
    with pytest.raises(ValueError, match="twice"):
        register_merged("m", ["s"], ["cat", "cat"])
    with pytest.raises(ValueError, match="at least one"):
        register_merged("m", [], ["cat"])
    assert register_merged("m", ["s"], ["cat"]) == register_merged("m", ["s"], ["cat"]) == "m"
    with pytest.raises(ValueError, match="already"):
        register_merged("m", ["s"], ["cat", "dog"])


def test_image_folders(catalog, tmp_path):
    for path in ("p/1.png", "p/deep/2.JPG", "q/3.png"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(tmp_path / path)
    (tmp_path / "p" / "notes.txt").write_text("no image")
    register_image_folder("folders", [str(tmp_path / "p"), str(tmp_path / "q")])
    assert summary("folders") == [("1.png", [], []), ("2.JPG", [], []), ("3.png", [], [])]
    with pytest.raises(ValueError, match="already"):
        register_image_folder("folders", str(tmp_path / "q"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        register_image_folder("more", str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image in .*empty"):
        DatasetCatalog.get(register_image_folder("more", str(tmp_path / "empty")))


def test_trains_labelled_and_unlabelled_together(catalog, tmp_path):
    catalog("labelled", ["cat", "dog"], {"a.png": [0]})
    (tmp_path / "u").mkdir()
    Image.fromarray(np.zeros((20, 30, 3), dtype=np.uint8)).save(tmp_path / "u" / "1.png")
    register_image_folder("unlabelled", str(tmp_path / "u"))
    cfg = get_base_cfg()
    cfg.DATASETS.TRAIN = (register_merged("mixed", ["labelled", "unlabelled"], ["cat", "dog"]),)
    cfg.INPUT.FORMAT, cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS = "RGB", 2, 0
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    loader = iter(build_detection_train_loader(cfg, mapper=make_train_mapper(cfg, [])))
    seen = {tuple(item["labelled_classes"].tolist()): len(item["instances"]) for _ in range(4) for item in next(loader)}
    assert seen == {(0, 1): 1, (): 0}
