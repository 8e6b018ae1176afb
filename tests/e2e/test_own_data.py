"""The README's own commands, as a user runs them, on a user's own COCO json and image folder."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from d2x.checkpoint.files import read_checkpoint
from d2x.data.sets.shapes import ShapesSpec, generate_shapes
from tests import fork_server

QUICKSTART = {
    "centerx": "projects/CenterX/configs/quickstart.yaml",
    "plain_detr": "projects/PlainDETR/configs/quickstart.yaml",
}
SHORT = (
    "SOLVER.MAX_ITER 4 SOLVER.WARMUP_ITERS 1 SOLVER.FLAT_FRACTION 0.5 SOLVER.IMS_PER_BATCH 2 "
    "SOLVER.CHECKPOINT_PERIOD 2 TEST.EVAL_PERIOD 0"
).split()


def run(*words, fails: bool = False) -> str:
    """Run a tool; returns what it printed. Fails the test unless it ends as expected."""
    done = fork_server.run(*words, PYTHONWARNINGS="ignore")
    if fails:
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert done.returncode == 1, done.stderr[-2000:]
        assert len(errors) == 1 and "Traceback" not in done.stderr, done.stderr[-2000:]
        return errors[0]
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """A user's data: ``train/``, ``val/``, each with ``annotations.json`` and ``images/``; three classes."""
    folder = tmp_path_factory.mktemp("own")
    classes = ("cross", "star", "ellipse")
    generate_shapes(ShapesSpec(8, seed=11, classes=classes, sides=(64, 80)), folder / "train")
    generate_shapes(ShapesSpec(4, seed=12, classes=classes, sides=(64, 80)), folder / "val")
    return folder


def own(data: Path) -> list[str]:
    words = []
    for split in ("train", "val"):
        words += [f"--{split}-json", data / split / "annotations.json", f"--{split}-images", data / split / "images"]
    return words


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=pytest.mark.xdist_group(f"own_{name}")) for name in sorted(QUICKSTART)],
)
def trained(request, data, tmp_path_factory) -> tuple[str, Path]:
    """(detector, output folder) of a short training through tools/train_net.py."""
    output = tmp_path_factory.mktemp(request.param)
    command = ["tools/train_net.py", "--config-file", QUICKSTART[request.param], *own(data), *SHORT]
    run(*command, "OUTPUT_DIR", output)
    return request.param, output


def test_training_leaves_weights_metrics_events_and_config(trained):
    _, output = trained
    for name in ("model_final.pth", "metrics.json", "config.yaml", "log.txt", "last_checkpoint"):
        assert (output / name).exists(), name
    assert list(output.glob("events.out.tfevents*"))
    results = json.loads((output / "metrics.json").read_text().splitlines()[-1])
    assert "bbox/AP" in results or "bbox/AP-cross" in results, "evaluated at the end, per class name"
    assert "cross" in (output / "config.yaml").read_text(), "class names follow from the json"


def test_resume_goes_on_where_it_stopped_and_a_second_run_overwrites_nothing(trained, data):
    detector, output = trained
    command = ["tools/train_net.py", "--config-file", QUICKSTART[detector], *own(data), *SHORT, "OUTPUT_DIR", output]
    before = (output / "model_final.pth").stat().st_mtime_ns
    assert "--resume" in run(*command, fails=True)
    assert (output / "model_final.pth").stat().st_mtime_ns == before
    assert "--resume" in run(*command, "--resume", fails=True), "a flag among the overrides is named"
    printed = run(command[0], "--resume", *command[1:], "SOLVER.MAX_ITER", 6)
    assert "from iteration 4" in printed
    assert read_checkpoint(str(output / "model_final.pth"))["iteration"] == 5


def test_evaluate_and_demo(trained, data, tmp_path):
    detector, output = trained
    weights = ["MODEL.WEIGHTS", output / "model_final.pth"]
    config = ["--config-file", output / "config.yaml"]
    assert "bbox" in run("tools/train_net.py", *config, *own(data), "--eval-only", *weights, "OUTPUT_DIR", tmp_path)
    images = data / "val" / "images"
    run("tools/demo.py", *config, "--input", images, "--output", tmp_path / "demo", *weights)
    results = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert results["categories"] == ["cross", "star", "ellipse"]
    assert {Path(found["file_name"]).parent for found in results["detections"]} <= {images}
    assert len(list((tmp_path / "demo").glob("*.jpg"))) == 4


def test_demo_reads_and_writes_video(trained, tmp_path):
    _, output = trained
    video = tmp_path / "in.avi"
    writer = cv2.VideoWriter(str(video), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
    for i in range(3):
        writer.write(np.full((48, 64, 3), 80 * i, np.uint8))
    writer.release()
    weights = ["MODEL.WEIGHTS", output / "model_final.pth"]
    config = ["--config-file", output / "config.yaml"]
    run("tools/demo.py", *config, "--input", video, "--output", tmp_path / "o", *weights)
    reader = cv2.VideoCapture(str(tmp_path / "o" / "in.mp4"))
    assert reader.get(cv2.CAP_PROP_FRAME_COUNT) == 3


def test_checkpoint_of_another_architecture_is_refused(trained, data, tmp_path):
    detector, output = trained
    other = QUICKSTART["plain_detr" if detector == "centerx" else "centerx"]
    weights = ["MODEL.WEIGHTS", output / "model_final.pth"]
    command = ["tools/train_net.py", "--config-file", other, *own(data), "--eval-only", *weights]
    assert str(output / "model_final.pth") in run(*command, "OUTPUT_DIR", tmp_path, fails=True)


def _train(data, tmp_path, *words, **changed):
    """Command of a training, with KEY VALUE ``words``, and with other ``train_json`` or ``train_images``."""
    flags = [word for name, path in changed.items() for word in (f"--{name.replace('_', '-')}", path)]
    config = QUICKSTART["centerx"]
    output = ["OUTPUT_DIR", tmp_path / "out"]
    return ["tools/train_net.py", "--config-file", config, *own(data), *flags, *SHORT, *output, *words]


def test_wrong_key_names_the_nearest(data, tmp_path):
    assert "SOLVER.BASE_LR" in run(*_train(data, tmp_path, "SOLVER.BASE_LRR", 0.1), fails=True)


def test_missing_config_file_is_named(tmp_path):
    assert "nowhere.yaml" in run("tools/train_net.py", "--config-file", tmp_path / "nowhere.yaml", fails=True)


def test_class_count_that_contradicts_the_data(data, tmp_path):
    error = run(*_train(data, tmp_path, "MODEL.CENTERNET.NUM_CLASSES", 7), fails=True)
    assert "7 classes" in error and "3" in error


def test_truncated_json_is_named(data, tmp_path):
    broken = tmp_path / "broken.json"
    text = (data / "train" / "annotations.json").read_text()
    broken.write_text(text[: len(text) // 2])
    assert "broken.json" in run(*_train(data, tmp_path, train_json=broken), fails=True)


def test_missing_image_folder_is_named(data, tmp_path):
    assert "nope" in run(*_train(data, tmp_path, train_images=tmp_path / "nope"), fails=True)


def test_bad_records_are_counted_and_skipped_and_an_empty_set_is_an_error(data, tmp_path):
    content = json.loads((data / "train" / "annotations.json").read_text())
    good = content["annotations"][0]
    for i, box in enumerate(([5, 5, 0, 3], [5, 5, -4, 3], [float("nan"), 1, 2, 3], [900, 900, 5, 5])):
        content["annotations"].append({**good, "id": 1000 + i, "bbox": box})
    content["annotations"].append({**good, "id": 2000, "category_id": 77})
    (tmp_path / "some_bad.json").write_text(json.dumps(content))
    printed = run(*_train(data, tmp_path, train_json=tmp_path / "some_bad.json"))
    assert "some_bad.json" in printed and "5" in printed and "skipped" in printed
    content.update(images=[], annotations=[])
    (tmp_path / "empty.json").write_text(json.dumps(content))
    error = run(*_train(data, tmp_path / "2", train_json=tmp_path / "empty.json"), fails=True)
    assert "empty.json" in error


@pytest.mark.parametrize(
    "tool", ["train_net", "quickstart", "demo", "visualize_data", "visualize_attention", "convert_checkpoint"]
)
def test_help_is_useful(tool):
    printed = run(f"tools/{tool}.py", "--help")
    assert "usage:" in printed and len(printed) > 400
