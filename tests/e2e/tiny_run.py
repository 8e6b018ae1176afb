"""A training of seconds through tools/train_net.py, and ways to end it."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = {
    "centerx": ROOT / "projects/CenterX/configs/quickstart.yaml",
    "plain_detr": ROOT / "projects/PlainDETR/configs/quickstart.yaml",
}
SOLVER = (
    "SEED 7 SOLVER.WARMUP_ITERS 2 SOLVER.FLAT_FRACTION 0.5 SOLVER.CHECKPOINT_PERIOD 1 TEST.EVAL_PERIOD 0"
    " CHECKPOINT.KEEP_LAST 2 HEALTH.COLLAPSE.WINDOW 3 DATASETS.TRAIN ('shapes_tiny_train',) DATASETS.TEST ()"
).split()
SMALL = {
    "centerx": (
        "MODEL.SMALL_RESNET.WIDTHS [8,12,16,20] MODEL.CENTERNET.HEAD_CHANNELS 8 MODEL.CENTERNET.NECK.CHANNELS [16,8,8]"
        " INPUT.CROP.SIZE [64,64]"
    ).split(),
    "plain_detr": (
        "MODEL.SMALL_RESNET.WIDTHS [8,16] MODEL.SMALL_RESNET.BLOCKS [1,1] MODEL.PLAIN_DETR.HIDDEN_DIM 32"
        " MODEL.PLAIN_DETR.FEEDFORWARD_DIM 64 MODEL.PLAIN_DETR.DECODER_LAYERS 1 MODEL.PLAIN_DETR.BOX_RPB.HIDDEN_DIM 16"
    ).split(),
}
DEADLINE = 240.0  # seconds until something must have happened


def command(output: Path, *opts, detector: str = "centerx", flags=("--resume",), python=(sys.executable,)) -> list[str]:
    words = [*python, "tools/train_net.py", "--config-file", CONFIGS[detector], *flags, "OUTPUT_DIR", output]
    return [str(word) for word in (*words, *SOLVER, *SMALL[detector], *opts)]


def start(words: list[str], log: Path, **environment: str) -> subprocess.Popen:
    """Start in a process group of its own; what it prints is added to ``log``."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **environment}
    with open(log, "ab") as file:
        return subprocess.Popen(words, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=env, start_new_session=True)


def run(words: list[str], log: Path, **environment: str) -> int:
    """Run to the end; returns the exit status."""
    process = start(words, log, **environment)
    try:
        return process.wait(DEADLINE)
    finally:
        kill(process)


def kill(process: subprocess.Popen, number: int = signal.SIGKILL) -> None:
    """Send a signal to the whole group; a group that has ended is left alone."""
    if process.poll() is None:
        os.killpg(process.pid, number)


def interrupt(words: list[str], output: Path, log: Path, number: int, rng: random.Random, after: int = 1) -> int | None:
    """Start, and send a signal at a random moment after ``after`` more checkpoints; returns the exit status.

    Args:
        rng: of the moment; a step with its checkpoint takes some 0.1 s.
    """
    mark = output / "last_checkpoint"
    before = _stamp(mark)
    process = start(words, log)
    end = time.monotonic() + DEADLINE
    while process.poll() is None and _changes(mark, before) < after and time.monotonic() < end:
        time.sleep(0.005)
    time.sleep(rng.uniform(0, 0.15))
    kill(process, number)
    try:
        return process.wait(DEADLINE)
    finally:
        kill(process)


def _stamp(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _changes(path: Path, before: str) -> int:
    return int(_stamp(path) != before)
