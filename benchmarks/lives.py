"""Trainings in processes forked from one that has imported everything: a life costs a second instead of ten."""

import multiprocessing
import os
import random
import signal
import time
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

from benchmarks.tiny_run import ROOT, last_checkpoint
from d2x.errors import one_line_errors
from tools import train_net


def begin(words: Sequence[str], log: Path) -> ForkServerProcess:
    """Start ``tools/train_net.py`` in a process group of its own; what it prints is added to ``log``.

    Args:
        words: of a whole command, as ``tiny_run.command`` gives them.
    """
    os.environ["OMP_NUM_THREADS"] = "1"  # for the process that the others are forked from
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.lives"])
    arguments = list(words)[list(words).index("tools/train_net.py") + 1 :]
    process = context.Process(target=_life, args=(arguments, str(log)))
    process.start()
    return process


def end(process: ForkServerProcess) -> int:
    """Kill a training and the processes that load its data; returns the exit status, negative for a signal."""
    if process.is_alive():
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:  # so young that it has no group of its own yet
            process.kill()
    process.join()
    return process.exitcode


def live(words: Sequence[str], log: Path) -> int:
    """Run a training to its end; see ``begin``. Returns the exit status."""
    process = begin(words, log)
    process.join()
    return process.exitcode


def kill_at_random(
    words: Sequence[str], output: Path, log: Path, rng: random.Random, *, start: float, steps: float
) -> int:
    """Start a training and kill it at a random moment; returns the exit status.

    Args:
        words, log: see ``begin``.
        output: of the training.
        start: a quarter of the moments lie within so many seconds from the start, when it reads the last checkpoint.
        steps: the others within so many seconds after the next one.
    """
    before = last_checkpoint(output)
    life = begin(words, log)
    try:
        if rng.random() < 0.25:
            time.sleep(rng.uniform(0, start))
        else:
            while life.is_alive() and last_checkpoint(output) == before:
                time.sleep(0.005)
            time.sleep(rng.uniform(0, steps))
    finally:  # also when the one who waits here is interrupted
        status = end(life)
    return status


def _life(arguments: list[str], log: str) -> None:
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    for number in (1, 2):
        os.dup2(file, number)
    os.chdir(ROOT)
    with one_line_errors():
        train_net.main(train_net.parser().parse_args(arguments))
