"""A training of seconds through tools/train_net.py, and ways to end it."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.fork_server import Program

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
# As much state as there is: accumulated gradients, adaptive losses, averaged weights.
RICH = "SOLVER.IMS_PER_BATCH 4 SOLVER.ACCUMULATE 2 ADAPTIVE_LOSS.ENABLED True WEIGHT_AVERAGING.START 3".split()
DEADLINE = 1800.0  # seconds until a process that should have ended counts as hanging, on a machine with other work
# Files of the process may have this many bytes: a checkpoint does not fit.
FILE_LIMIT = 200_000
LIMITED = (
    f"import resource, runpy, sys; resource.setrlimit(resource.RLIMIT_FSIZE, ({FILE_LIMIT}, {FILE_LIMIT}));"
    " sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
)
# Permissions hold for the process even if it is root's: it is started again without the right to pass them over (the
# capabilities 1 and 2, CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH; Linux).
READ_ONLY = (
    "import ctypes, os, sys; libc = ctypes.CDLL(None); [libc.prctl(24, number, 0, 0, 0) for number in (1, 2)];"
    " os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


def command(
    output: Path,
    *opts,
    detector: str = "centerx",
    flags: Sequence = ("--resume",),
    python: Sequence = (sys.executable,),
) -> list[str]:
    """The words of a training: interpreter, tool, flags, and config ``opts`` over those above."""
    words = [*python, "tools/train_net.py", "--config-file", CONFIGS[detector], *flags, "OUTPUT_DIR", output]
    return [str(word) for word in (*words, *SOLVER, *SMALL[detector], *opts)]


def torchrun(*options) -> list[str]:
    """``python`` for ``command``."""
    return [sys.executable, "-m", "torch.distributed.run", *map(str, options)]


def start(words: Sequence[str], log: Path, **environment: str) -> subprocess.Popen:
    """Start in a process group of its own; what it prints is added to ``log``."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **environment}
    with open(log, "ab") as file:
        return subprocess.Popen(words, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, env=env, start_new_session=True)


def wait(process: subprocess.Popen) -> int:
    """Exit status of a process; nothing of its group is left afterwards."""
    try:
        return process.wait(DEADLINE)
    finally:
        kill(process)


def run(words: Sequence[str], log: Path, **environment: str) -> int:
    """Run to the end; returns the exit status."""
    return wait(start(words, log, **environment))


def kill(process: subprocess.Popen, number: int = signal.SIGKILL) -> None:
    """Send a signal to the whole group; a group that has ended is left alone."""
    if process.poll() is None:
        os.killpg(process.pid, number)


def wait_for_checkpoint(process: subprocess.Popen, output: Path, before: str) -> None:
    """Return when ``last_checkpoint`` no longer says ``before``, or the process has ended."""
    end = time.monotonic() + DEADLINE
    while process.poll() is None and last_checkpoint(output) == before and time.monotonic() < end:
        time.sleep(0.005)


def interrupt(
    words: Sequence[str], output: Path, log: Path, number: int, rng: random.Random, start: Callable = start
) -> int:
    """Start, and send a signal at a random moment after the next checkpoint; returns the exit status."""
    before = last_checkpoint(output)
    process = start(words, log)
    wait_for_checkpoint(process, output, before)
    time.sleep(rng.uniform(0, 0.15))  # a step and its checkpoint take some 0.1 s
    kill(process, number)
    return wait(process)


def last_checkpoint(output: Path) -> str:
    """Name of the file that a run would be resumed from, "" for none."""
    path = output / "last_checkpoint"
    return path.read_text() if path.exists() else ""


def processes_below(parent: int, word: str) -> list[int]:
    """Ids of the descendants of a process with ``word`` in their command line, in order (Linux)."""
    found = []
    for children in Path(f"/proc/{parent}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            if word in Path(f"/proc/{child}/cmdline").read_text():
                found.append(child)
            found += processes_below(child, word)
    return sorted(found)


def errors(log: Path) -> list[str]:
    """The lines with which a tool says what is wrong."""
    return [line for line in log.read_text().splitlines() if line.startswith("error: ")]


def leftovers(output: Path) -> list[str]:
    """Names of temporary files in a folder."""
    return sorted(name for name in os.listdir(output) if name.endswith(".tmp"))


def kill_at_random(
    words: Sequence[str], output: Path, log: Path, rng: random.Random, *, start: float, steps: float
) -> int:
    """Start a training in a forked process and kill it at a random moment; returns the exit status.

    Args:
        words: of a whole command, as ``command`` gives them.
        output: of the training.
        log: what it prints is added to this file.
        start: a quarter of the moments lie within so many seconds from the start, when it reads the last checkpoint.
        steps: the others within so many seconds after the next one.
    """
    before = last_checkpoint(output)
    training = Program(words[list(words).index("tools/train_net.py") :], log)
    try:
        if rng.random() < 0.25:
            time.sleep(rng.uniform(0, start))
        else:
            while training.poll() is None and last_checkpoint(output) == before:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, steps))
    finally:  # also when the one who waits here is interrupted
        training.send_signal(signal.SIGKILL)
    return training.wait()
