"""Readers of data sets against the records of the original's: every list in ``centerx/data/**/expected.json``."""

import json
import shutil
from pathlib import Path

import pytest
from detectron2.structures import BoxMode
from PIL import Image

from d2x.data.sets.coco_classes import read_coco_classes
from d2x.data.sets.crowd_human import read_crowd_human
from d2x.data.sets.pseudo_txt import join_records, read_pseudo_txt
from d2x.data.sets.wider_face import parse_wider_face, read_voc_xml
from tests.parity.golden import folder

DATA = folder("centerx") / "data"
FACES = Path("datasets/wider_face_add_lm_10_10_add_mafa")
PEOPLE = Path("datasets/crowd_human")
BOTH = ["person", "face"]


def expected_lists(path: Path) -> dict[str, list[dict]]:
    return json.loads(path.read_text())["records"] if path.exists() else {}


EXPECTED = expected_lists(DATA / "expected.json")
PUBLIC = {
    f"{path.parent.name}/{name}": (path.parent, name, records)
    for path in sorted(DATA.glob("*/expected.json"))
    for name, records in expected_lists(path).items()
}


def keys(kind: str) -> list[str]:
    return [key for key in EXPECTED if key.split("/")[0] == kind]


@pytest.fixture
def samples(tmp_path, monkeypatch):
    """The sample files in the working directory, with images of the listed sizes where those were not kept."""
    for path in DATA.rglob("*"):
        if path.is_file():
            target = tmp_path / path.relative_to(DATA)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
    sizes = DATA / "image_sizes.json"
    for name, size in (json.loads(sizes.read_text()) if sizes.exists() else {}).items():
        image = tmp_path / name
        if isinstance(size, list) and not image.exists():
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", tuple(size[::-1])).save(image)
    monkeypatch.chdir(tmp_path)


def comparable(records: list[dict], *, sort: bool = False) -> list[dict]:
    """What the golden records hold; ``BoxMode`` by name."""
    plain = []
    for record in records:
        annotations = [
            {**one, "bbox_mode": BoxMode[one["bbox_mode"]] if isinstance(one["bbox_mode"], str) else one["bbox_mode"]}
            for one in record["annotations"]
        ]
        plain.append({**record, "annotations": annotations})
    return sorted(plain, key=lambda record: record["image_id"]) if sort else plain


def assert_same_records(found: list[dict], expected: list[dict], *, sort: bool = False) -> None:
    found, expected = comparable(found, sort=sort), comparable(expected, sort=sort)
    assert [record["image_id"] for record in found] == [record["image_id"] for record in expected]
    for ours, theirs in zip(found, expected):
        assert {key: ours[key] for key in theirs if key != "annotations"} == {
            key: theirs[key] for key in theirs if key != "annotations"
        }
        assert len(ours["annotations"]) == len(theirs["annotations"]), ours["file_name"]
        for our_box, their_box in zip(ours["annotations"], theirs["annotations"]):
            assert our_box["bbox"] == pytest.approx(their_box["bbox"], abs=1e-6)
            assert (our_box["category_id"], our_box["bbox_mode"]) == (their_box["category_id"], their_box["bbox_mode"])
            assert "iscrowd" not in our_box


def crowd_human(split: str) -> list[dict]:
    return read_crowd_human(
        PEOPLE / "Annotations" / f"annotation_{split}.odgt",
        PEOPLE / "JPEGImages",
        ignore_regions=False,
        keep_empty=False,
    )


def voc(listed: str, classes: list[str]) -> list[dict]:
    return read_voc_xml(FACES / "ImageSets" / "Main" / f"{listed}.txt", FACES, classes, clip=False)


def pseudo(root: Path, name: str) -> list[dict]:
    return read_pseudo_txt(root / name, root / "JPEGImages", BOTH, released_ids=True)


@pytest.mark.parametrize("key", keys("crowd_human"))
def test_crowd_human(key, samples):
    assert_same_records(crowd_human(key.split("/")[1]), EXPECTED[key])


@pytest.mark.parametrize("key", keys("face_voc"))
def test_faces_in_voc_xml(key, samples):
    _, listed, classes = key.split("/")
    assert_same_records(voc(listed, classes.split("+")), EXPECTED[key])


@pytest.mark.parametrize("key", keys("coco_class"))
def test_classes_of_coco(key, samples):
    _, split, classes = key.split("/")
    root = Path("datasets/coco")
    found = read_coco_classes(
        root / "annotations" / f"instances_{split}2017.json",
        root / f"{split}2017",
        classes.split("+"),
        images="all",
        crowds_as_objects=True,
        need_images=False,
    )
    assert_same_records(found, EXPECTED[key], sort=True)


@pytest.mark.parametrize("key", keys("pseudo_face_on_crowd_human"))
def test_found_faces_on_crowd_human(key, samples):
    assert_same_records(pseudo(PEOPLE, "crowdhuman_pseudo_face.txt"), EXPECTED[key])


@pytest.mark.parametrize("key", keys("pseudo_person_on_face"))
def test_found_people_on_faces(key, samples):
    assert_same_records(pseudo(FACES, "widerface_pseudo_human.txt"), EXPECTED[key])


@pytest.mark.parametrize("key", keys("pseudo_person_face_train"))
def test_people_and_faces_joined(key, samples):
    people = join_records(crowd_human("train"), pseudo(PEOPLE, "crowdhuman_pseudo_face.txt"))
    faces = join_records(voc("trainval_all", BOTH), pseudo(FACES, "widerface_pseudo_human.txt"))
    assert_same_records(join_records(people, faces), EXPECTED[key])


@pytest.mark.parametrize("key", list(PUBLIC))
def test_public_wider_face_text(key):
    root, name, expected = PUBLIC[key]
    (path,) = root.rglob(name)
    prefix = "WIDER_train/images/" if "train" in name else "WIDER_val/images/"
    found = parse_wider_face(path)
    assert [prefix + image for image, _ in found] == [record["file_name"] for record in expected]
    for (_, faces), record in zip(found, expected):
        assert len(faces) == len(record["faces"])
        for face, theirs in zip(faces, record["faces"]):
            assert list(face.bbox) == theirs["bbox_xywh"]
            grades = face._asdict()
            assert {key: grades[key] for key in grades if key != "bbox"} == {
                key: theirs[key] for key in grades if key != "bbox"
            }
