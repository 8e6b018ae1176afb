import copy
import json

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances
from PIL import Image

from d2x.data.sets.builtin import VOC_FACES, register_builtin
from d2x.data.sets.coco_classes import read_coco_classes
from d2x.data.sets.crowd_human import read_crowd_human
from d2x.data.sets.pseudo_txt import read_pseudo_txt
from d2x.data.sets.wider_face import parse_wider_face, read_voc_xml, read_wider_face

NAMES = [
    *(f"coco_{kind}_{split}" for kind in ("person", "car", "person_car") for split in ("train", "val")),
    *(f"{kind}_{split}" for kind in ("crowd_human", "crowd_human_face", "wider_face") for split in ("train", "val")),
    *(f"{kind}_{split}" for kind in ("face", "widerface_crowdhuman") for split in ("train", "test")),
    "pseudo_person_face_train",
    "objects365_train",
    "objects365_val",
]


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_builtin()
    return tmp_path


def write(path, content) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, tuple):
        Image.new("RGB", content).save(path)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content))


def crowd_line(image_id: str, *boxes: dict) -> str:
    return json.dumps({"ID": image_id, "gtboxes": list(boxes)})


def person(x, y, w, h, **more) -> dict:
    return {"tag": "person", "vbox": [x, y, w, h], "fbox": [x, y, w, h + 10], **more}


def coco(images: int = 3) -> dict:
    """Image 1 has a person and a car, image 2 a crowd of people, image 3 a bicycle."""
    boxes = [(1, 1, 0), (1, 3, 0), (2, 1, 1), (3, 2, 0)]
    return {
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 60, "height": 40} for i in range(1, images + 1)],
        "annotations": [
            {"id": n, "image_id": i, "category_id": kind, "bbox": [5, 5, 20, 10], "area": 200, "iscrowd": crowd}
            for n, (i, kind, crowd) in enumerate(boxes, start=1)
        ],
        "categories": [{"id": 1, "name": "person"}, {"id": 2, "name": "bicycle"}, {"id": 3, "name": "car"}],
    }


def test_registering_twice_and_without_any_file(root):
    register_builtin()
    assert set(NAMES) <= set(DatasetCatalog.list())
    assert MetadataCatalog.get("coco_person_car_val").thing_classes == ["person", "car"]
    assert MetadataCatalog.get("crowd_human_face_train").labelled_classes == [0]
    assert MetadataCatalog.get("widerface_crowdhuman_train").labelled_classes == [1]


@pytest.mark.parametrize("name", NAMES)
def test_a_missing_file_is_named_in_one_line(name, root):
    with pytest.raises(
        FileNotFoundError, match=f"data set '{name}': .*not found: {root}.*DETECTRON2_DATASETS"
    ) as caught:
        DatasetCatalog.get(name)
    assert "\n" not in str(caught.value)


def test_a_missing_image_folder_is_named(root):
    write(root / "coco/annotations/instances_train2017.json", coco())
    with pytest.raises(FileNotFoundError, match="image folder not found: .*train2017"):
        DatasetCatalog.get("coco_person_train")


def test_classes_of_coco(root):
    for split in ("train", "val"):
        write(root / f"coco/annotations/instances_{split}2017.json", coco())
        (root / f"coco/{split}2017").mkdir()
    train = DatasetCatalog.get("coco_person_car_train")
    assert [record["image_id"] for record in train] == [1, 2]
    assert [one["category_id"] for one in train[0]["annotations"]] == [0, 1]
    assert train[1]["annotations"][0]["iscrowd"] == 1
    assert train[0]["dataset_name"] == "coco_person_car_train"
    assert [record["image_id"] for record in DatasetCatalog.get("coco_car_val")] == [1, 2, 3]
    assert DatasetCatalog.get("coco_car_val")[0]["annotations"][0]["category_id"] == 0


def test_an_unknown_class_of_coco_is_named(tmp_path):
    write(tmp_path / "a.json", coco())
    with pytest.raises(ValueError, match="a.json: no category dog"):
        read_coco_classes(tmp_path / "a.json", tmp_path, ["dog"])


def test_crowd_human(root, caplog):
    folder = root / "crowd_human"
    ignored = person(0, 0, 9, 9, extra={"ignore": 1})
    mask = {"tag": "mask", "vbox": [20, 20, 10, 10]}
    lines = [
        crowd_line("a", person(-5, 2, 30, 50), person(3, 3, 1, 9), ignored, mask),
        crowd_line("gone", person(1, 1, 5, 5)),
        '{"ID": "b", "gtbo',
        crowd_line("c", person(1, 1, float("nan"), 5)),
    ]
    write(folder / "Annotations/annotation_train.odgt", "\n".join(lines) + "\n")
    for name in "abc":
        write(folder / f"JPEGImages/{name}.jpg", (40, 30))
    with caplog.at_level("WARNING"):
        records = DatasetCatalog.get("crowd_human_train")
    assert [(record["image_id"], record["height"], record["width"]) for record in records] == [
        ("a", 30, 40),
        ("c", 30, 40),
    ]
    assert [one["bbox"] for one in records[0]["annotations"]] == [[0, 2, 25, 30], [0, 0, 9, 9], [20, 20, 30, 30]]
    assert [one.get("iscrowd", 0) for one in records[0]["annotations"]] == [0, 1, 1]
    assert records[0]["annotations"][0]["bbox_mode"] == BoxMode.XYXY_ABS
    for part in ("skipped 3 bad records", "image files missing (line 2", "line 3", "NaN or infinity"):
        assert part in caplog.text
    full = read_crowd_human(folder / "Annotations/annotation_train.odgt", folder / "JPEGImages", boxes="full")
    assert full[0]["annotations"][1]["bbox"] == [0, 0, 9, 19]


def test_no_usable_record_is_an_error(root):
    write(root / "crowd_human/Annotations/annotation_val.odgt", "not json\n")
    (root / "crowd_human/JPEGImages").mkdir()
    with pytest.raises(ValueError, match="no usable image; .*annotation_val.odgt: skipped 1 bad records"):
        DatasetCatalog.get("crowd_human_val")


def test_public_wider_face(root):
    text = (
        "0--Parade/a.jpg\n3\n1 2 10 5 0 0 0 0 0 0\n1 1 0 5 0 0 0 0 0 0\n30 20 50 50 0 0 0 1 0 0\n0--Parade/b.jpg\n0\n"
    )
    split = root / "wider_face/wider_face_split/wider_face_val_bbx_gt.txt"
    write(split, text + "0 0 0 0 0 0 0 0 0 0\n1--X/c.jpg\n1\n4 4 4 4 0 0 0 0 0 0\n")
    for name in ("0--Parade/a", "0--Parade/b", "1--X/c"):
        write(root / f"wider_face/WIDER_val/images/{name}.jpg", (40, 30))
    records = DatasetCatalog.get("wider_face_val")
    assert [record["image_id"] for record in records] == ["0--Parade/a", "0--Parade/b", "1--X/c"]
    assert [one["bbox"] for one in records[0]["annotations"]] == [[1, 2, 11, 7], [30, 20, 40, 30]]
    assert [one.get("iscrowd", 0) for one in records[0]["annotations"]] == [0, 1]
    assert records[1]["annotations"] == []


@pytest.mark.parametrize(
    "text, message",
    [
        ("a.jpg\n2\n1 2 3 4 0 0 0 0 0 0\n", "'a.jpg' at line 1 lists 1 of 2 faces"),
        ("a.jpg\n", "bad entry of 'a.jpg' at line 1"),
        ("a.jpg\nmany\n", "bad entry of 'a.jpg' at line 1"),
        ("a.jpg\n1\n1 2 3\n", "bad entry of 'a.jpg' at line 1"),
    ],
)
def test_a_broken_wider_face_file_is_an_error(text, message, tmp_path):
    write(tmp_path / "gt.txt", text)
    with pytest.raises(ValueError, match=message):
        parse_wider_face(tmp_path / "gt.txt")


def test_wider_face_without_the_line_of_zeros(tmp_path):
    write(tmp_path / "gt.txt", "a.jpg\n0\nb.jpg\n1\n1 2 3 4 0 0 0 0 0 0\n")
    write(tmp_path / "b.jpg", (20, 20))
    assert [len(faces) for _, faces in parse_wider_face(tmp_path / "gt.txt")] == [0, 1]
    assert len(read_wider_face(tmp_path / "gt.txt", tmp_path)) == 1  # a.jpg is missing


def voc_xml(*boxes: str, name: str = "face") -> str:
    objects = "".join(
        f"<object><name>{name}</name><bndbox>"
        + "".join(f"<{side}>{v}</{side}>" for side, v in zip(("xmin", "ymin", "xmax", "ymax"), box.split()))
        + "</bndbox></object>"
        for box in boxes
    )
    return f"<annotation><size><width>40</width><height>30</height></size>{objects}</annotation>"


def test_faces_in_voc_xml(root, caplog):
    folder = root / VOC_FACES
    write(folder / "ImageSets/Main/test.txt", "a\nb\nbroken\ngone\n")
    write(folder / "Annotations/a.xml", voc_xml("1 1 10 20", "36 26 60 60", "50 50 60 60"))
    write(folder / "Annotations/b.xml", voc_xml())
    write(folder / "Annotations/broken.xml", "<annotation><size>")
    (folder / "JPEGImages").mkdir()
    with caplog.at_level("WARNING"):
        records = DatasetCatalog.get("face_test")
    assert [record["image_id"] for record in records] == ["a", "b"]
    assert [one["bbox"] for one in records[0]["annotations"]] == [[0, 0, 10, 20], [35, 25, 40, 30]]
    assert "skipped 2 bad records" in caplog.text
    both = DatasetCatalog.get("widerface_crowdhuman_test")
    assert [one["category_id"] for one in both[0]["annotations"]] == [1, 1]
    write(folder / "Annotations/b.xml", voc_xml("1 1 5 5", name="dog"))
    with pytest.raises(ValueError, match="b.xml: object of class 'dog'"):
        read_voc_xml(folder / "ImageSets/Main/test.txt", folder, ["face"])


def test_found_boxes_keep_whole_names(tmp_path):
    write(tmp_path / "found.txt", "img_g.jpg;40;30;face;1;2;50;20\nbad line\nb.jpg;40;30\n")
    records = read_pseudo_txt(tmp_path / "found.txt", tmp_path, ["person", "face"])
    assert [record["image_id"] for record in records] == ["img_g"]
    assert records[0]["annotations"][0]["bbox"] == [1, 2, 40, 20]
    with pytest.raises(ValueError, match="line 1: class 'face'"):
        read_pseudo_txt(tmp_path / "found.txt", tmp_path, ["person"])


def test_objects365_knows_its_classes_once_read(root, monkeypatch):
    # detectron2's catalogue is one for the whole process: the other tests get back what was there
    monkeypatch.setitem(MetadataCatalog.data, "objects365_val", copy.deepcopy(MetadataCatalog.get("objects365_val")))
    write(root / "objects365/annotations/zhiyuan_objv2_val.json", coco())
    (root / "objects365/val").mkdir()
    records = DatasetCatalog.get("objects365_val")
    assert len(records) == 3
    assert MetadataCatalog.get("objects365_val").thing_classes == ["person", "bicycle", "car"]


def test_coco_evaluator_scores_records_with_text_ids(root, tmp_path):
    folder = root / "crowd_human"
    lines = [crowd_line("x,1", person(2, 2, 20, 20)), crowd_line("y,2", person(5, 5, 30, 20)), crowd_line("z,3")]
    write(folder / "Annotations/annotation_val.odgt", "\n".join(lines))
    for name in ("x,1", "y,2", "z,3"):
        write(folder / f"JPEGImages/{name}.jpg", (40, 30))
    records = DatasetCatalog.get("crowd_human_val")
    evaluator = COCOEvaluator("crowd_human_val", output_dir=str(tmp_path / "out"))
    evaluator.reset()
    for record in records:
        found = Instances((record["height"], record["width"]))
        boxes = [one["bbox"] for one in record["annotations"]]
        found.pred_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
        found.scores = torch.ones(len(boxes))
        found.pred_classes = torch.zeros(len(boxes), dtype=torch.int64)
        evaluator.process([record], [{"instances": found}])
    assert evaluator.evaluate()["bbox"]["AP"] == pytest.approx(100.0)
