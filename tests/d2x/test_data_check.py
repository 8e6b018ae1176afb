"""tools/check_dataset.py: every kind of problem is found, counted and named; a clean copy has none; inputs stay."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from d2x.data.rules import problems as kinds
from d2x.data.rules.image_files import inspect_image
from d2x.data.sets.coco_json import register_coco_json
from tests import fork_server
from tools.check_dataset import main

ROOT = Path(__file__).resolve().parents[2]
W, H = 60, 40


def picture(seed: int, size=(W, H)) -> Image.Image:
    """Smooth random content, so that a saved and scaled copy looks the same."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (5, 6, 3), dtype=np.uint8))
    return coarse.resize(size, Image.Resampling.BICUBIC)


def annotation(number, image_id=1, category_id=7, bbox=(10, 5, 20, 30), **more):
    return {"id": number, "image_id": image_id, "category_id": category_id, "bbox": list(bbox), "area": 600,
            "iscrowd": 0, **more}  # fmt: skip


class DataSet:
    def __init__(self, folder: Path, seeds):
        self.folder, self.images, self.json = folder, folder / "images", folder / "data.json"
        self.images.mkdir(parents=True)
        self.content = {
            "info": {"year": 2020},
            "images": [],
            "categories": [{"id": 7, "name": "cat"}, {"id": 3, "name": "dog"}],
            "annotations": [],
        }
        for number, seed in enumerate(seeds, start=1):
            picture(seed).save(self.images / f"{number}.png")
            self.image(number)
            self.box(annotation(number, image_id=number, category_id=(7, 3)[number % 2]))

    def image(self, number, **changed):
        record = {"id": number, "file_name": f"{number}.png", "width": W, "height": H, **changed}
        self.content["images"].append({key: value for key, value in record.items() if value is not None})

    def box(self, record):
        self.content["annotations"].append(record)

    def check(self, *more, other=None) -> tuple[int, dict]:
        """(exit status, counts by kind) of the tool."""
        self.json.write_text(json.dumps(self.content))
        command = [str(self.json), str(self.images), "--report", str(self.folder / "report.json"), *map(str, more)]
        if other is not None:
            other.json.write_text(json.dumps(other.content))
            command += ["--val-json", str(other.json), "--val-images", str(other.images)]
        status = main(command)
        self.report = json.loads((self.folder / "report.json").read_text())
        assert self.report["status"] == status
        return status, {one["kind"]: one["count"] for one in self.report["sets"][0]["problems"]}

    def records(self, kind) -> list[dict]:
        return next(one["records"] for one in self.report["sets"][0]["problems"] if one["kind"] == kind)


@pytest.fixture
def data(tmp_path) -> DataSet:
    return DataSet(tmp_path / "train", seeds=(1, 2, 3))


def test_nothing_wrong(data, capsys):
    assert data.check() == (0, {})
    assert "usable are 3 of 3 images, 3 of 3 annotations, 2 categories" in capsys.readouterr().out
    assert data.report["sets"][0]["categories"] == [
        {"id": 3, "name": "dog", "annotations": 2},
        {"id": 7, "name": "cat", "annotations": 1},
    ]


def _missing(data):
    data.image(9)


def _truncated(data):
    data.image(9)
    picture(9).save(data.images / "9.png")
    content = (data.images / "9.png").read_bytes()
    (data.images / "9.png").write_bytes(content[:-40])


def _truncated_jpeg(data):
    data.image(9, file_name="9.jpg")
    picture(9, (200, 200)).save(data.images / "9.jpg", quality=95)
    content = (data.images / "9.jpg").read_bytes()
    (data.images / "9.jpg").write_bytes(content[: len(content) * 3 // 4])


def _no_image(data):
    data.image(9)
    (data.images / "9.png").write_text("<html>404</html>")


def _empty_file(data):
    data.image(9)
    (data.images / "9.png").touch()


def _folder(data):
    data.image(9)
    (data.images / "9.png").mkdir()


def _pipe(data):
    data.image(9)
    os.mkfifo(data.images / "9.png")


def _other_size(data):
    data.image(9, width=W + 1)
    picture(9).save(data.images / "9.png")


def _turned(data):
    exif = Image.Exif()
    exif[0x0112] = 6
    data.image(9, file_name="9.jpg")
    picture(9).save(data.images / "9.jpg", exif=exif)


def _image_record(**changed):
    def change(data):
        data.image(**{"number": 9, **changed})
        picture(9).save(data.images / "9.png")

    return change


def _image_text(data):
    data.content["images"].append("text")


def _box(**changed):
    return lambda data: data.box({key: value for key, value in annotation(9, **changed).items() if value is not None})


def _no_boxes(data):
    data.image(9)
    picture(9).save(data.images / "9.png")


def _same_content(data):
    data.image(9)
    data.box(annotation(9, image_id=9))
    picture(1).save(data.images / "9.png", compress_level=1)


def _repeated_box(data):
    data.box({**data.content["annotations"][0], "id": 9})


ERRORS = {
    "missing": (_missing, kinds.FILE_MISSING),
    "truncated png": (_truncated, kinds.FILE_UNREADABLE),
    "truncated jpeg": (_truncated_jpeg, kinds.FILE_UNREADABLE),
    "no image": (_no_image, kinds.FILE_UNREADABLE),
    "empty file": (_empty_file, kinds.FILE_UNREADABLE),
    "folder": (_folder, kinds.FILE_UNREADABLE),
    "pipe": (_pipe, kinds.FILE_UNREADABLE),
    "other size": (_other_size, kinds.FILE_OTHER_SIZE),
    "turned": (_turned, kinds.FILE_TURNED),
    "no width": (_image_record(width=None), "image records without width"),
    "no record": (_image_text, "image records without id"),
    "half a pixel": (_image_record(height=40.5), kinds.IMAGE_BAD_SIZE),
    "huge": (_image_record(height=2**31), kinds.IMAGE_BAD_SIZE),
    "name": (_image_record(file_name="a\0b"), kinds.IMAGE_BAD_NAME),
    "number as name": (_image_record(file_name=9), kinds.IMAGE_BAD_NAME),
    "id again": (_image_record(number=1, file_name="9.png"), kinds.IMAGE_BAD_ID),
    "id of another type": (_image_record(number="9", file_name="9.png"), kinds.IMAGE_BAD_ID),
    "id true": (_image_record(number=True, file_name="9.png"), kinds.IMAGE_BAD_ID),
    "NaN": (_box(bbox=(float("nan"), 5, 2, 3)), "annotations with NaN or infinity in the bbox"),
    "too large": (_box(bbox=(10**400, 5, 2, 3)), "annotations with NaN or infinity in the bbox"),
    "negative": (_box(bbox=(5, 5, -2, 3)), "annotations with zero or negative size"),
    "zero": (_box(bbox=(5, 5, 2, 0)), "annotations with zero or negative size"),
    "outside": (_box(bbox=(W, 5, 2, 3)), "annotations wholly outside the image"),
    "text in box": (_box(bbox=(1, 5, "2", 3)), "annotations whose bbox is not four numbers"),
    "three": (_box(bbox=(1, 5, 2)), "annotations whose bbox is not four numbers"),
    "no box": (_box(bbox=()), "annotations whose bbox is not four numbers"),
    "no category": (_box(category_id=None), "annotations without category_id"),
    "unknown category": (_box(category_id=99), kinds.UNKNOWN_CATEGORY),
    "unknown image": (_box(image_id=99), kinds.UNKNOWN_IMAGE),
    "list as image": (_box(image_id=[1]), kinds.UNKNOWN_IMAGE),
}
WARNINGS = {
    "partly outside": (_box(bbox=(50, 5, 12, 3)), kinds.BOX_PARTLY_OUTSIDE),
    "id again": (lambda data: data.box(annotation(1, bbox=(1, 1, 2, 2))), kinds.ANNOTATION_BAD_ID),
    "id 0": (lambda data: data.box(annotation(0, bbox=(1, 1, 2, 2))), kinds.ANNOTATION_BAD_ID),
    "no id": (lambda data: data.box(annotation("x", bbox=(1, 1, 2, 2))), kinds.ANNOTATION_BAD_ID),
    "box again": (_repeated_box, kinds.ANNOTATION_REPEATED),
    "crowd as text": (_box(bbox=(1, 1, 2, 2), iscrowd="no"), kinds.ANNOTATION_BAD_FIELDS),
    "area NaN": (_box(bbox=(1, 1, 2, 2), area=float("nan")), kinds.ANNOTATION_BAD_FIELDS),
}
NOTES = {
    "crowd": (_box(bbox=(1, 1, 2, 2), iscrowd=1), kinds.CROWD),
    "ignored": (_box(bbox=(1, 1, 2, 2), ignore=1), kinds.CROWD),
    "without boxes": (_no_boxes, kinds.IMAGE_EMPTY),
    "unused": (lambda data: data.content["categories"].append({"id": 8, "name": "cow"}), kinds.CATEGORY_UNUSED),
    "content again": (_same_content, kinds.CONTENT_REPEATED),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_error_is_found_and_a_clean_copy_is_without(data, name, tmp_path):
    make, kind = ERRORS[name]
    make(data)
    status, found = data.check("--write-clean", tmp_path / "clean.json")
    assert (status, found) == (1, {kind: 1})
    assert kinds.severity(kind) == "error"
    named = {"no record": "image 3", "name": "image a\\x00b"}.get(name, "9")
    assert named in data.records(kind)[0]["record"]
    assert main([str(tmp_path / "clean.json"), str(data.images)]) == 0
    assert len(json.loads((tmp_path / "clean.json").read_text())["images"]) == 3


@pytest.mark.parametrize("name", WARNINGS)
def test_a_warning_is_found_and_a_clean_copy_is_without(data, name, tmp_path):
    make, kind = WARNINGS[name]
    make(data)
    assert data.check("--write-clean", tmp_path / "clean.json") == (1, {kind: 1})
    assert kinds.severity(kind) == "warning"
    assert main([str(tmp_path / "clean.json"), str(data.images)]) == 0
    kept = json.loads((tmp_path / "clean.json").read_text())["annotations"]
    assert len(kept) == (3 if name == "box again" else 4)


@pytest.mark.parametrize("name", NOTES)
def test_a_note_is_no_problem(data, name):
    make, kind = NOTES[name]
    make(data)
    assert data.check() == (0, {kind: 1})


def _no_categories(data):
    del data.content["categories"]


def _same_category_id(data):
    data.content["categories"].append({"id": 7, "name": "cow"})


def _same_category_name(data):
    data.content["categories"].append({"id": 8, "name": "cat"})


def _nothing_left(data):
    data.content["annotations"] = [annotation(1, bbox=(0, 0, 0, 0))]


@pytest.mark.parametrize("change, words", [
    (_no_categories, "key 'categories' is missing"),
    (_same_category_id, "category 2: id 7 or name 'cow' is used twice"),
    (_same_category_name, "category 2: id 8 or name 'cat' is used twice"),
    (_nothing_left, "zero or negative size"),
])  # fmt: skip
def test_a_set_that_cannot_be_used(data, change, words, capsys, tmp_path):
    change(data)
    status, _ = data.check()
    assert status == 2 and words in capsys.readouterr().out
    assert main([str(data.json), str(data.images), "--write-clean", str(tmp_path / "c.json")]) == 2
    assert "cannot be used" in capsys.readouterr().err and not (tmp_path / "c.json").exists()
    with pytest.raises(ValueError, match="data.json"):  # training says the same
        register_coco_json("check_unusable", str(data.json), str(data.images))


def test_a_broken_json_is_named_with_line_and_column(data, capsys):
    data.json.write_text('{"images": [\n{"id": 1,}\n]}')
    assert main([str(data.json), str(data.images)]) == 2
    assert "data.json is not valid json: line 2, column " in capsys.readouterr().err
    assert main([str(data.folder / "none.json"), str(data.images)]) == 2
    assert "none.json" in capsys.readouterr().err
    data.check()
    assert main([str(data.json), str(data.folder / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_everything_at_once_in_one_pass_and_the_input_stays(data, tmp_path):
    data.image(11)
    data.image(12)
    picture(12).save(data.images / "12.png")
    (data.images / "12.png").write_bytes((data.images / "12.png").read_bytes()[:-40])
    data.image(13, height=H - 1)
    picture(13).save(data.images / "13.png")
    data.image(1, file_name="14.png")
    boxes = [(float("nan"), 1, 2, 3), (1, 1, 0, 3), (W, 1, 2, 3), (50, 1, 20, 3), (1, 1, 2, 3), (10, 5, 20, 30)]
    for number, box in enumerate(boxes, start=21):
        data.box(annotation(number, bbox=box, category_id=3, iscrowd=int(number == 25)))
    data.box(annotation(31, category_id=99))
    data.box(annotation(32, image_id=99))
    data.box(annotation(33, image_id=11))
    data.box(annotation(33, image_id=12))
    data.json.write_text(json.dumps(data.content))
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in data.images.iterdir()}
    text = data.json.read_bytes()

    status, found = data.check("--write-clean", tmp_path / "clean.json")
    assert (status, found) == (1, {
        kinds.IMAGE_BAD_ID: 1,
        kinds.FILE_MISSING: 1,
        kinds.FILE_UNREADABLE: 1,
        kinds.FILE_OTHER_SIZE: 1,
        "annotations with NaN or infinity in the bbox": 1,
        "annotations with zero or negative size": 1,
        "annotations wholly outside the image": 1,
        kinds.UNKNOWN_CATEGORY: 1,
        kinds.UNKNOWN_IMAGE: 1,
        kinds.BOX_PARTLY_OUTSIDE: 1,
        kinds.ANNOTATION_REPEATED: 1,  # number 26 is number 1
        kinds.CROWD: 1,
        kinds.OF_LEFT_OUT_IMAGES: 2,
    })  # fmt: skip
    assert data.json.read_bytes() == text
    assert before == {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in data.images.iterdir()}
    clean = json.loads((tmp_path / "clean.json").read_text())
    assert [image["id"] for image in clean["images"]] == [1, 2, 3]
    assert [one["id"] for one in clean["annotations"]] == [1, 2, 3, 24, 25]
    assert main([str(tmp_path / "clean.json"), str(data.images)]) == 0


def test_records_of_the_same_file_become_one(data, tmp_path):
    data.image(9, file_name="./1.png")
    data.box(annotation(9, image_id=9, bbox=(1, 1, 8, 8)))
    data.box(annotation(10, image_id=9, category_id=3))  # image 1 has this one
    status, found = data.check("--write-clean", tmp_path / "clean.json")
    assert status == 1 and found == {kinds.NAME_REPEATED: 1, kinds.ANNOTATION_REPEATED: 1}
    clean = json.loads((tmp_path / "clean.json").read_text())
    assert [image["id"] for image in clean["images"]] == [1, 2, 3]
    assert [one["image_id"] for one in clean["annotations"]] == [1, 2, 3, 1]
    assert main([str(tmp_path / "clean.json"), str(data.images)]) == 0


def test_clean_copy_keeps_what_it_need_not_change(data, tmp_path):
    data.content["licenses"] = [{"id": 1}]
    data.content["annotations"][0]["segmentation"] = [[1, 2, 3, 4, 5, 6]]
    data.box(annotation(9, bbox=(-5, 10, 20, 60), area=1200))
    data.check("--write-clean", tmp_path / "clean.json")
    clean = json.loads((tmp_path / "clean.json").read_text())
    assert clean["licenses"] == [{"id": 1}] and clean["info"] == {"year": 2020}
    assert clean["annotations"][:3] == data.content["annotations"][:3]
    assert clean["annotations"][3] == annotation(9, bbox=(0, 10, 15, 30), area=450)


def leaky(tmp_path):
    """Training images 1 to 3, of which 2 is validation image 1 byte for byte and 3 in pixels only."""
    train, val = DataSet(tmp_path / "train", (1, 2, 3)), DataSet(tmp_path / "val", (2, 4, 5))
    picture(3).save(val.images / "2.png", compress_level=1)
    assert (val.images / "2.png").read_bytes() != (train.images / "3.png").read_bytes()
    return train, val


def test_leaks_between_training_and_validation(tmp_path):
    train, val = leaky(tmp_path)
    status, found = train.check("--write-clean", tmp_path / "clean.json", other=val)
    assert status == 1 and found == {kinds.LEAK_BYTES: 1, kinds.LEAK_PIXELS: 1}
    assert train.records(kinds.LEAK_PIXELS)[0]["record"] == "image 3.png, validation image 2.png"
    clean = json.loads((tmp_path / "clean.json").read_text())
    assert [image["id"] for image in clean["images"]] == [1] and len(clean["annotations"]) == 1
    arguments = [str(train.images), "--val-json", str(val.json), "--val-images", str(val.images)]
    assert main([str(tmp_path / "clean.json"), *arguments]) == 0


def test_images_that_merely_look_alike_are_noted_if_asked_for(tmp_path):
    train, val = DataSet(tmp_path / "train", (1, 2)), DataSet(tmp_path / "val", (4, 5))
    val.image(9, file_name="9.jpg", width=90)
    picture(2).resize((90, 40)).save(val.images / "9.jpg", quality=60)
    assert train.check(other=val) == (0, {})
    status, found = train.check("--near", "6", other=val)
    assert (status, found) == (0, {kinds.LEAK_NEAR: 1})
    assert train.records(kinds.LEAK_NEAR)[0]["record"].startswith("image 2.png, validation image 9.jpg")


def test_several_processes_find_the_same(data):
    for name in ("truncated jpeg", "NaN"):
        ERRORS[name][0](data)
    one = data.check()
    report = data.report
    assert data.check("--jobs", "2") == one and data.report == report


def test_headers_only(data):
    _truncated_jpeg(data)
    data.image(10, width=5)
    picture(10).save(data.images / "10.png")
    _, found = data.check("--headers-only")
    assert found == {kinds.FILE_OTHER_SIZE: 2}, "the jpeg is 200 x 200; that it is truncated is not seen"


def test_a_report_lists_the_first_and_counts_all(data):
    for number in range(10, 30):
        data.box(annotation(number, bbox=(1, 1, 0, 1)))
    _, found = data.check("--listed", "5")
    assert found == {"annotations with zero or negative size": 20}
    assert len(data.records("annotations with zero or negative size")) == 5


def test_nothing_is_written_over_an_input(data):
    data.check()
    image = next(data.images.iterdir())
    content = image.read_bytes()
    for option in ("--report", "--write-clean"):
        for over in (data.images / ".." / "data.json", image):
            with pytest.raises(SystemExit) as ended:
                main([str(data.json), str(data.images), option, str(over)])
            assert ended.value.code == 2 and image.read_bytes() == content
    same = [str(data.images / "new.json")] * 2
    with pytest.raises(SystemExit):
        main([str(data.json), str(data.images), "--report", same[0], "--write-clean", same[1]])
    for _ in range(2):  # a report may lie beside the images, and be written again
        assert main([str(data.json), str(data.images), "--report", same[0]]) == 0


def test_a_turned_image_with_the_size_after_the_turn_is_fine(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    picture(1).save(tmp_path / "a.jpg", exif=exif)
    assert inspect_image(str(tmp_path / "a.jpg"), H, W).fault == ""
    assert inspect_image(str(tmp_path / "a.jpg"), W, H).fault == kinds.FILE_TURNED
    assert inspect_image(str(tmp_path / "a.jpg"), 7, H).fault == kinds.FILE_OTHER_SIZE


def test_pixels_of_a_turned_copy_are_those_of_the_upright_one(tmp_path):
    picture(1).save(tmp_path / "upright.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 270 degrees, counter-clockwise, when shown
    picture(1).transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    facts = [inspect_image(str(tmp_path / name), W, H) for name in ("upright.png", "turned.png")]
    assert facts[0].pixel_hash == facts[1].pixel_hash and facts[0].file_hash != facts[1].file_hash


def test_every_kind_is_documented():
    text = (ROOT / "docs" / "data_checks.md").read_text()
    named = {value for name, value in vars(kinds).items() if name.isupper() and isinstance(value, str)}
    assert len(named) > 20
    for kind in named:
        assert kind.strip() in text, kind


def test_as_a_command(data):
    _missing(data)
    data.json.write_text(json.dumps(data.content))
    done = fork_server.run("tools/check_dataset.py", data.json, data.images)
    assert done.returncode == 1 and "image files missing" in done.stdout and "Traceback" not in done.stderr
    assert "3/3" in done.stderr or "100%" in done.stderr, "a progress bar"
    usage = fork_server.run("tools/check_dataset.py", "--help")
    assert "exit status" in usage.stdout
