"""The commands of projects/CenterX/two_data_sets.md, as they stand there, on a tiny data set."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from d2x.data.sets.shapes import ShapesSpec, generate_shapes
from tests import fork_server

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.xdist_group("two_data_sets")  # one run of the page for all
END = "end-of-command"
PAGE = ROOT / "projects" / "CenterX" / "two_data_sets.md"
TINY = (
    "SOLVER.MAX_ITER 4 SOLVER.WARMUP_ITERS 1 SOLVER.CHECKPOINT_PERIOD 4 SOLVER.IMS_PER_BATCH 4 TEST.EVAL_PERIOD 0 "
    "MODEL.SMALL_RESNET.WIDTHS [8,12,16,20] MODEL.CENTERNET.HEAD_CHANNELS 8 MODEL.CENTERNET.NECK.CHANNELS [16,8,8]"
)


def blocks() -> list[str]:
    return [code for kind, code in re.findall(r"```bash( settings)?\n(.*?)```", PAGE.read_text(), re.S) if not kind]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Everything the page says, with its settings replaced; the shell only puts the commands together."""
    folder = tmp_path_factory.mktemp("two_data_sets")
    settings = {"OUTPUT": folder / "output", "OPTIONS": TINY}
    for part, classes in (("A", ("ellipse", "rectangle")), ("B", ("star",))):
        for split, seed in (("TRAIN", 1), ("VAL", 2)):
            every = ("ellipse", "rectangle", "star")
            spec = ShapesSpec(8, seed=seed + 10 * (part == "B"), classes=every, annotated=classes)
            json_file = generate_shapes(spec, folder / f"{part}_{split}")
            settings[f"{part}_{split}"] = json_file
            settings[f"{part}_{split}_IMAGES"] = json_file.parent / "images"
    settings["TEACHER"] = settings["STUDENT"] = "projects/CenterX/configs/quickstart.yaml"
    lines = [f'{name}="{value}"' for name, value in settings.items()]
    script = "\n".join(["set -eu", """python() { printf '%s\\0' "$@" "$END"; }""", f"END={END}", *lines, *blocks()])
    shell = subprocess.run(["bash", "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert shell.returncode == 0, shell.stderr
    commands = [command.split("\0") for command in shell.stdout.removesuffix(f"\0{END}\0").split(f"\0{END}\0")]
    assert len(commands) == "".join(blocks()).count("python tools/") > 5
    printed = ""
    for words in commands:
        done = fork_server.run(*words, D2X_CACHE=str(folder / "cache"))
        assert done.returncode == 0, f"{words}\n{done.stdout[-3000:]}{done.stderr[-6000:]}"
        printed += done.stdout + done.stderr
    return settings["OUTPUT"], printed


def test_every_command_leaves_its_result(run):
    output, _ = run
    for name in ("teacher_a", "teacher_b", "student", "ignore", "pseudo"):
        assert (output / name / "model_final.pth").is_file(), name


def test_the_student_knows_all_classes_and_was_taught(run):
    output, text = run
    assert "teaches ellipse, rectangle" in text and "teaches star" in text
    metrics = [json.loads(line) for line in (output / "student" / "metrics.json").read_text().splitlines()]
    assert {"kd_cls_loss0", "kd_cls_loss1"} <= set().union(*metrics)


def test_pseudo_json_keeps_true_boxes_and_names_all_classes(run):
    output, _ = run
    content = json.loads((output / "pseudo.json").read_text())
    assert [category["name"] for category in content["categories"]] == ["ellipse", "rectangle", "star"]
    assert len(content["images"]) == 16
    assert any("score" not in annotation for annotation in content["annotations"])
