"""Malformed COCO jsons: registered, mapped, prepared for evaluation, checked and cleaned."""

import contextlib
import copy
import io
import json
import math
import random
from functools import lru_cache
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image
from pycocotools.coco import COCO

from benchmarks.malformed.cases import USER_ERRORS, Broken, Case
from benchmarks.malformed.mutate import damage_bytes, damage_tree
from d2x.config.keys import get_base_cfg
from d2x.data.mapper import make_train_mapper
from d2x.data.sets.coco_json import register_coco_json
from tools.check_dataset import main as check_dataset

SIZE = (24, 16)
CONTENT = {
    "info": {"year": 2026},
    "images": [{"id": i, "file_name": f"{i}.png", "width": 24, "height": 16} for i in range(1, 5)],
    "annotations": [
        {
            "id": i,
            "image_id": 1 + i % 4,
            "category_id": 1 + i % 3,
            "bbox": [i, 2.5, 5, 6],
            "area": 30,
            "iscrowd": int(i == 3),
        }
        for i in range(1, 8)
    ],
    "categories": [{"id": i, "name": f"class {i}"} for i in range(1, 4)],
}


def make(rng: random.Random, folder: Path) -> Case:
    images = _images(folder.parent)
    text = json.dumps(CONTENT).encode()
    if rng.random() < 0.25:
        what, text = "text damaged", damage_bytes(rng, text)
    else:
        what, text = "values damaged", _dump(damage_tree(rng, copy.deepcopy(CONTENT)))
    path = folder / "data.json"
    path.write_bytes(text)
    return Case(what, "data.json", lambda: _run(path, images))


def _run(path: Path, images: Path) -> str:
    name, before = f"malformed_{path.parent.name}", path.read_bytes()
    refusal = None
    try:
        with _quiet():
            register_coco_json(name, str(path), str(images))
        _use(name)
    except USER_ERRORS as error:
        refusal = error
    finally:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
        if name in MetadataCatalog:
            MetadataCatalog.remove(name)
    status = _check(path, images, refusal is not None)
    if path.read_bytes() != before:
        raise Broken("the input was changed")
    if refusal:
        raise refusal
    return "accepted" if status == 0 else "skipped"


def _use(name: str) -> None:
    """What training and evaluation do with a registered set."""
    metadata, records = MetadataCatalog.get(name), DatasetCatalog.get(name)
    classes = len(metadata.thing_classes)
    for record in records:
        for annotation in record["annotations"]:
            x, y, w, h = annotation["bbox"]
            inside = x < record["width"] and y < record["height"] and x + w > 0 and y + h > 0
            if not (all(map(math.isfinite, (x, y, w, h))) and w > 0 and h > 0 and inside):
                raise Broken(f"a bad box went through: {annotation}")
            if not 0 <= annotation["category_id"] < classes:
                raise Broken(f"a bad category went through: {annotation}")
        _mapper()(record)
        _mapper()._bad_in_a_row = 0
    with _quiet():
        coco = COCO(metadata.json_file)
    evaluated = {record["image_id"] for record in records}
    if set(coco.getImgIds()) != evaluated:
        raise Broken("training and evaluation have different images")
    evaluated_boxes = len(coco.dataset.get("annotations", []))
    if sum(len(record["annotations"]) for record in records) != evaluated_boxes:
        raise Broken("training and evaluation have different annotations")


def _check(path: Path, images: Path, refused: bool) -> int:
    clean = path.with_name("clean.json")
    with _quiet():
        status = check_dataset([str(path), str(images), "--report", str(path.with_name("report.json"))])
        if status != 2:
            written = check_dataset([str(path), str(images), "--write-clean", str(clean)])
            again = check_dataset([str(clean), str(images)])
            if written != status or again != 0:
                raise Broken(f"the clean copy is not clean: {written}, {again}")
    if refused and status != 2:
        raise Broken(f"training refuses the data set, the check does not: {status}")
    return status


def _dump(tree) -> bytes:
    return json.dumps(tree).encode()


@lru_cache
def _mapper():
    cfg = get_base_cfg()
    cfg.INPUT.FORMAT = "RGB"
    cfg.DATASETS.TRAIN = ()
    return make_train_mapper(cfg, [])


@lru_cache
def _images(folder: Path) -> Path:
    images = folder / "json-images"
    images.mkdir()
    for image in CONTENT["images"]:
        Image.new("RGB", SIZE, (60 * image["id"], 20, 90)).save(images / image["file_name"])
    return images


@contextlib.contextmanager
def _quiet():
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield
