"""tools/make_pseudo_labels.py: what is kept, what is added, and going on after an interruption."""

import json

import pytest
import torch
from detectron2.structures import Boxes, Instances
from PIL import Image

import centerx  # noqa: F401
from d2x.config.load import load_cfg
from d2x.inference import pseudo_labels
from tools import make_pseudo_labels as tool


class FakePredictor:
    """Finds a face of score 0.9 and one of 0.3, and a person of 0.8, in every image."""

    calls = 0

    def __init__(self, cfg):
        pass

    def __call__(self, image):
        FakePredictor.calls += 1
        found = Instances(image.shape[:2])
        found.pred_boxes = Boxes(torch.tensor([[1.0, 1.0, 4.0, 5.0], [2.0, 2.0, 6.0, 6.0], [0.0, 0.0, 9.0, 9.0]]))
        found.scores = torch.tensor([0.9, 0.3, 0.8])
        found.pred_classes = torch.tensor([1, 1, 0])
        return found


@pytest.fixture
def arguments(tmp_path, monkeypatch):
    monkeypatch.setenv("D2X_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(pseudo_labels, "Predictor", FakePredictor)
    FakePredictor.calls = 0
    images = tmp_path / "images"
    images.mkdir()
    for i in range(3):
        Image.new("RGB", (20, 10)).save(images / f"{i}.png")
    content = {
        "images": [{"id": i, "file_name": f"{i}.png", "height": 10, "width": 20} for i in range(3)],
        "annotations": [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [1, 2, 5, 6], "area": 30, "iscrowd": 0}],
        "categories": [{"id": 1, "name": "person"}],
    }
    (tmp_path / "a.json").write_text(json.dumps(content))
    cfg = load_cfg(None, ["MODEL.META_ARCHITECTURE", "CenterNet", "DATASETS.CLASS_NAMES", "['person', 'face']"])
    (tmp_path / "teacher.yaml").write_text(cfg.dump())
    (tmp_path / "teacher.pth").write_bytes(b"")
    return [
        *("--data", str(tmp_path / "a.json"), str(images)),
        *("--teacher", str(tmp_path / "teacher.yaml"), str(tmp_path / "teacher.pth")),
        *("--output", str(tmp_path / "out" / "pseudo.json")),
    ]


def test_true_boxes_stay_and_only_missing_classes_are_added(arguments):
    content = json.loads(tool.main(arguments).read_text())
    assert [category["name"] for category in content["categories"]] == ["person", "face"]
    people = [a for a in content["annotations"] if a["category_id"] == 1]
    faces = [a for a in content["annotations"] if a["category_id"] == 2]
    assert [(a["bbox"], a.get("score")) for a in people] == [([1, 2, 5, 6], None)]  # the teacher's person is not taken
    assert len(faces) == 3 and all(a["score"] == pytest.approx(0.9) and a["bbox"] == [1, 1, 3, 4] for a in faces)
    assert content["images"][0] == {"id": 1, "file_name": "0.png", "height": 10, "width": 20}


def test_threshold_of_a_class_beats_the_general_one(arguments):
    content = json.loads(tool.main([*arguments, "--threshold", "face=0.2", "--threshold", "0.95"]).read_text())
    assert sum(a["category_id"] == 2 for a in content["annotations"]) == 6


def test_an_interrupted_run_goes_on(arguments, tmp_path, monkeypatch):
    real = FakePredictor.__call__

    def dies(self, image):
        if FakePredictor.calls == 2:
            raise KeyboardInterrupt
        return real(self, image)

    monkeypatch.setattr(FakePredictor, "__call__", dies)
    with pytest.raises(KeyboardInterrupt):
        tool.main(arguments)
    part = tmp_path / "out" / "pseudo.json.part"
    assert len(part.read_text().splitlines()) == 1 + 2
    part.write_text(part.read_text() + '{"file_na')  # killed while writing
    monkeypatch.setattr(FakePredictor, "__call__", real)
    content = json.loads(tool.main(arguments).read_text())
    assert FakePredictor.calls == 3 and len(content["images"]) == 3 and not part.exists()


def test_other_arguments_start_anew(tmp_path):
    path = tmp_path / "x.part"
    first = pseudo_labels.Progress(path, "one")
    first.add({"file_name": "a"})
    assert list(pseudo_labels.Progress(path, "one").done) == ["a"]
    assert pseudo_labels.Progress(path, "two").done == {}


@pytest.mark.parametrize("text, message", [("1.5", "score from 0 to 1"), ("dog=0.5", "classes are person, face")])
def test_wrong_thresholds(text, message):
    with pytest.raises(ValueError, match=f"--threshold {text}.*{message}"):
        tool.read_thresholds([text], ["person", "face"])


def test_missing_weights_and_foreign_teacher(arguments, tmp_path):
    with pytest.raises(ValueError, match="knows person, face; none is in dog"):
        tool.main([*arguments, "--classes", "dog"])
    (tmp_path / "teacher.pth").unlink()
    with pytest.raises(FileNotFoundError, match="teacher.pth"):
        tool.main(arguments)


def test_folder_without_images(arguments, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no image in .*empty"):
        tool.main([*arguments, "--images", str(tmp_path / "empty")])
