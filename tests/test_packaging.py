"""The sdist and the wheel: what is in them, and the quick start of an installed copy, without a checkout."""

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.xdist_group("packaging")  # one wheel for all
PACKAGES = ("centerx", "plain_detr", "d2x")
MOVED = ("tools", "projects", "configs")  # folders that an installed copy has inside d2x
FOLDERS = (*PACKAGES, *MOVED, "docs")
CONFIGS = {*ROOT.glob("configs/*.yaml"), *ROOT.glob("projects/*/configs/**/*.yaml")}
SOURCES = {path for package in (*PACKAGES, "tools") for path in ROOT.glob(f"{package}/**/*.py")}
KERNELS = {*ROOT.glob("plain_detr/attention/csrc/*")}
TYPED = {f"{package}/py.typed" for package in PACKAGES}
FILES = {path.relative_to(ROOT).as_posix() for path in CONFIGS | SOURCES | KERNELS} | TYPED

SDIST = "import sys; from setuptools import build_meta; print(build_meta.build_sdist(sys.argv[1]))"
# The quick start as `python -m d2x.tools.quickstart` runs it; then the file of every module of ours that took part.
QUICKSTART = """
import json, runpy, sys
import centerx, plain_detr, d2x
runpy.run_module("d2x.tools.quickstart", run_name="__main__", alter_sys=True)
ours = [m for name, m in sys.modules.items() if name.split(".")[0] in ("centerx", "plain_detr", "d2x", "tools")]
print(json.dumps([m.__file__ or m.__path__[0] for m in ours]))
"""


def python(*words, cwd: Path, **environment: str) -> str:
    """What a Python in ``cwd`` prints that has not heard of the checkout."""
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | environment
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    """Built from a copy: builds leave folders behind, and take along what earlier ones left."""
    folder = tmp_path_factory.mktemp("sdist")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, folder / "source")
    printed = python("-c", SDIST, folder, cwd=folder / "source")
    return folder / printed.split()[-1]


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory) -> Path:
    """Built from the sdist, so that nothing which the sdist lacks is in it."""
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--no-cache-dir", "--wheel-dir", folder]
    python("-m", "pip", "wheel", *options, sdist, cwd=folder)
    return next(folder.glob("*.whl"))


def test_the_sdist_has_everything_to_install_from(sdist):
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"LICENSE", "NOTICE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "pyproject.toml"}
    wanted |= {"setup.py", "run.sh", "constraints.txt", "requirements-detectron2.txt", "docs/deployment.md"}
    assert (FILES | wanted) - names == set()
    assert not [name for name in names if name.startswith("tests") or name.endswith(".pyc")]


def test_the_wheel_has_the_code_the_kernels_the_configs_and_the_licence(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        info = next(name for name in names if name.endswith(".dist-info/METADATA")).partition("/")[0]
        metadata = archive.read(f"{info}/METADATA").decode()
        entries = archive.read(f"{info}/entry_points.txt").decode()
    ours = {name for name in names if not name.startswith(info)}
    assert ours == {
        f"d2x/{name}" if name.startswith(tuple(f"{folder}/" for folder in MOVED)) else name for name in FILES
    }
    assert {f"{info}/licenses/LICENSE", f"{info}/licenses/NOTICE"} <= names
    assert "License-Expression: Apache-2.0\n" in metadata
    assert not re.search("^Requires-Dist: albumentations", metadata, re.M)
    assert re.search(r"^Requires-Dist: opencv-python-headless>=[\d.]+$", metadata, re.M)
    assert entries.split() == ["[d2x.detectors]", "centerx", "=", "centerx", "plain_detr", "=", "plain_detr"]


def test_an_installed_copy_runs_the_quick_start(wheel, tmp_path):
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    options = ["--no-deps", "--no-index", "--no-compile", "--target", site]
    python("-m", "pip", "install", *options, wheel, cwd=work)
    short = ["SOLVER.MAX_ITER", 2, "SOLVER.WARMUP_ITERS", 1, "SOLVER.IMS_PER_BATCH", 2, "TEST.EVAL_PERIOD", 0]
    sets = ["DATASETS.TRAIN", "('shapes_tiny_train',)", "DATASETS.TEST", "('shapes_tiny_val',)"]
    small = ["MODEL.SMALL_RESNET.WIDTHS", "[8,12,16,20]", "DATALOADER.NUM_WORKERS", 0]
    words = ["-W", "ignore", "-c", QUICKSTART, "centerx", *short, *sets, *small]
    printed = python(*words, cwd=work, PYTHONPATH=str(site), OMP_NUM_THREADS="1").splitlines()
    files = json.loads(printed[-1])
    assert len(files) > 40 and [file for file in files if not Path(file).is_relative_to(site)] == []
    output = work / "output/quickstart"
    for name in ("model_final.pth", "metrics.json", "predictions.png", "curves.png", "config.yaml"):
        assert (output / name).stat().st_size > 0, name
    assert any(line.startswith("next      python -m d2x.tools.demo ") for line in printed)


def test_what_starts_with_an_interpreter_line_is_executable():
    scripts = [*ROOT.glob("tools/*"), *ROOT.glob("benchmarks/**/*.py"), ROOT / "run.sh", ROOT / ".ci/run"]
    scripts = [path for path in scripts if path.is_file() and path.read_bytes().startswith(b"#!")]
    assert {ROOT / "tools/train_net.py", ROOT / "tools/slurm_train.sbatch"} <= set(scripts)
    assert [path for path in scripts if not os.access(path, os.X_OK)] == []
