"""The public data sets that the shipped configs name, in the folder ``$DETECTRON2_DATASETS`` (default ``./datasets``).

Registering costs nothing: a data set's files are looked for when its records are first asked for. Evaluation goes
through detectron2's COCOEvaluator, which writes the records as a COCO json into its output folder.

| names | files below the folder |
|---|---|
| coco_person_*, coco_car_*, coco_person_car_* (train, val) | coco/annotations/instances_*2017.json, coco/*2017/ |
| crowd_human_*, crowd_human_face_* (train, val) | crowd_human/Annotations/annotation_*.odgt, crowd_human/JPEGImages/ |
| wider_face_* (train, val) | wider_face/wider_face_split/wider_face_*_bbx_gt.txt, wider_face/WIDER_*/images/ |
| face_train, face_test, widerface_crowdhuman_train, _test | the VOC folder of WIDER FACE and MAFA, see ``VOC_FACES`` |
| pseudo_person_face_train | CrowdHuman, the VOC folder, and a text file of found boxes in each |
| objects365_* (train, val) | objects365/annotations/zhiyuan_objv2_*.json, objects365/{train,val}/ |

COCO itself (coco_2017_train, ...) is registered by detectron2; training reads it through ``registered_coco``.
"""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from d2x.data.index.cache import open_index
from d2x.data.index.coco_index import IndexedRecords
from d2x.data.sets.coco_classes import read_coco_classes
from d2x.data.sets.crowd_human import read_crowd_human
from d2x.data.sets.pseudo_txt import join_records, read_pseudo_txt
from d2x.data.sets.wider_face import read_voc_xml, read_wider_face

VOC_FACES = "wider_face_add_lm_10_10_add_mafa"


def datasets_root() -> Path:
    """``$DETECTRON2_DATASETS``, by default ``datasets`` in the working directory."""
    return Path(os.environ.get("DETECTRON2_DATASETS") or "datasets").expanduser()


def register_builtin() -> None:
    """Register every data set of the table above; a second call does nothing."""
    for split in ("train", "val"):
        for classes in (["person"], ["car"], ["person", "car"]):
            _register(f"coco_{'_'.join(classes)}_{split}", classes, partial(_coco_classes, split, classes))
        _register(f"crowd_human_{split}", ["person"], partial(_crowd_human, split))
        _register(f"crowd_human_face_{split}", ["person", "face"], partial(_crowd_human, split), labelled=[0])
        _register(f"wider_face_{split}", ["face"], partial(_wider_face, split))
        _register(f"objects365_{split}", None, partial(_objects365, split))
        MetadataCatalog.get(f"objects365_{split}").indexed = True
    for split, listed in (("train", "trainval_all"), ("test", "test")):
        _register(f"face_{split}", ["face"], partial(_voc_faces, listed, ["face"]))
        both = ["person", "face"]
        _register(f"widerface_crowdhuman_{split}", both, partial(_voc_faces, listed, both), labelled=[1])
    _register("pseudo_person_face_train", ["person", "face"], _pseudo_person_face)


def _register(
    name: str, classes: Sequence[str] | None, read: Callable[[], Sequence[dict]], labelled: list[int] | None = None
) -> None:
    """``classes`` None: they become known with the records."""
    if name in DatasetCatalog:
        return
    DatasetCatalog.register(name, lambda: _load(name, read))
    metadata = MetadataCatalog.get(name)
    metadata.evaluator_type = "coco"
    if classes is not None:
        metadata.thing_classes = list(classes)
    if labelled is not None:
        metadata.labelled_classes = labelled


def _load(name: str, read: Callable[[], Sequence[dict]]) -> Sequence[dict]:
    try:
        records = read()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"data set '{name}': {error}; the environment variable DETECTRON2_DATASETS says where data sets are"
            f" (now {datasets_root()})"
        ) from error
    if isinstance(records, IndexedRecords):
        return records
    for record in records:
        record["dataset_name"] = name
    return records


def _coco_classes(split: str, classes: Sequence[str]) -> list[dict]:
    root = datasets_root() / "coco"
    # False alarms on images without the class must count in evaluation, so they stay there.
    images = "any" if split == "train" else "every"
    json_file = root / "annotations" / f"instances_{split}2017.json"
    return read_coco_classes(json_file, root / f"{split}2017", classes, images=images)


def _crowd_human(split: str) -> list[dict]:
    root = datasets_root() / "crowd_human"
    return read_crowd_human(root / "Annotations" / f"annotation_{split}.odgt", root / "JPEGImages")


def _wider_face(split: str) -> list[dict]:
    root = datasets_root() / "wider_face"
    annotations = root / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt"
    return read_wider_face(annotations, root / f"WIDER_{split}" / "images")


def _voc_faces(listed: str, classes: Sequence[str]) -> list[dict]:
    root = datasets_root() / VOC_FACES
    return read_voc_xml(root / "ImageSets" / "Main" / f"{listed}.txt", root, classes)


def _pseudo_person_face() -> list[dict]:
    people, faces, classes = datasets_root() / "crowd_human", datasets_root() / VOC_FACES, ["person", "face"]
    found_faces = read_pseudo_txt(people / "crowdhuman_pseudo_face.txt", people / "JPEGImages", classes)
    found_people = read_pseudo_txt(faces / "widerface_pseudo_human.txt", faces / "JPEGImages", classes)
    return join_records(
        join_records(_crowd_human("train"), found_faces),
        join_records(_voc_faces("trainval_all", classes), found_people),
    )


def _objects365(split: str) -> IndexedRecords:
    root, name = datasets_root() / "objects365", f"objects365_{split}"
    json_file, image_root = str(root / "annotations" / f"zhiyuan_objv2_{split}.json"), str(root / split)
    index = open_index(json_file, image_root, need_images=False)
    MetadataCatalog.get(name).set(json_file=json_file, image_root=image_root, **index.class_metadata())
    return IndexedRecords(index, image_root, name)
