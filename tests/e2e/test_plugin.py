"""A detector that no file of this project knows goes through the unchanged tools: trained, resumed, evaluated, ..."""

import os
import subprocess
from pathlib import Path

import pytest

from d2x.checkpoint.files import read_checkpoint
from d2x.checkpoint.fingerprint import fingerprint
from d2x.config.load import load_cfg
from d2x.data.sets.shapes import DATASETS, shapes_folder
from tests import fork_server

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.xdist_group("plugin")  # one training for all
PLUGIN = ROOT / "tests" / "plugin"
CONFIG = PLUGIN / "retina_shapes.yaml"
OF_THE_TEST = ["DATASETS.TRAIN", "('shapes_tiny_train',)", "DATASETS.TEST", "('shapes_tiny_val',)"]


def run(*words, path: str = str(PLUGIN)) -> subprocess.CompletedProcess:
    places = os.pathsep.join(part for part in (str(ROOT), path, os.environ.get("PYTHONPATH", "")) if part)
    return fork_server.run(*words, PYTHONPATH=places, PYTHONWARNINGS="ignore")


def succeed(*words) -> str:
    done = run(*words)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("retina")
    text = succeed("tools/train_net.py", "--config-file", CONFIG, *OF_THE_TEST, "OUTPUT_DIR", output)
    assert "does not read" not in text, "all that the config sets is used"
    return output


def test_a_resumed_training_ends_as_one_that_was_never_stopped(trained):
    final = trained / "model_final.pth"
    whole = fingerprint(read_checkpoint(str(final))["model"])
    final.unlink()
    (trained / "last_checkpoint").write_text("model_0000001.pth")
    succeed("tools/train_net.py", "--config-file", trained / "config.yaml", "--resume")
    assert fingerprint(read_checkpoint(str(final))["model"]) == whole


def test_evaluated_demoed_and_profiled(trained, tmp_path):
    saved = ["--config-file", trained / "config.yaml"]
    weights = ["MODEL.WEIGHTS", trained / "model_final.pth"]
    text = succeed("tools/train_net.py", "--eval-only", *saved, *weights, "OUTPUT_DIR", tmp_path / "eval")
    assert "Evaluation results for shapes_tiny_val" in text
    picture = sorted((shapes_folder(DATASETS["shapes_tiny_val"]) / "images").iterdir())[0]
    succeed("tools/demo.py", *saved, "--input", picture, "--output", tmp_path / "demo", "--threshold", "0.0", *weights)
    assert (tmp_path / "demo" / "results.json").exists()
    table = succeed("tools/profile_model.py", *saved, "--size", "64x64", "--output", tmp_path / "profile", *weights)
    assert "head" in table


def test_found_by_flag_without_the_key(tmp_path):
    bare = tmp_path / "bare.yaml"
    bare.write_text(CONFIG.read_text().replace('PLUGINS: ["tiny_retina"]\n', "").replace("../..", str(ROOT)))
    words = ["tools/train_net.py", "--config-file", bare, *OF_THE_TEST, "SOLVER.MAX_ITER", "1"]
    done = run(*words, "OUTPUT_DIR", tmp_path / "without")
    assert done.returncode == 1 and "'RetinaNet' is no registered detector" in done.stderr
    succeed("tools/train_net.py", "--plugin", "tiny_retina", *words[1:], "OUTPUT_DIR", tmp_path / "with")
    assert "tiny_retina" in (tmp_path / "with" / "config.yaml").read_text(), "so that the saved config is complete"


def test_a_package_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="'no_such_package' cannot be imported.*PYTHONPATH"):
        load_cfg(None, plugins=["no_such_package"])
