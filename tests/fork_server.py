"""Processes for tests of whole programs, forked from one that has imported everything.

Such a process is one of its own (exit status, signals, output, environment, registries) and starts in a second, where a
new interpreter needs six seconds of CPU time for its imports. Programs that must not find modules imported already
(what an interpreter without torch does, torchrun) are started by ``subprocess``.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from multiprocessing.context import ForkServerProcess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Imported once, before the first fork.
PRELOADED = ("tests.fork_server", *(f"tools.{path.stem}" for path in ROOT.glob("tools/[a-z]*.py")))


class Program:
    """A running program, with the part of ``subprocess.Popen`` that tests use.

    Args:
        words: what stands behind ``python`` on a command line: options, then a script's path or ``-c`` and code, then
            its arguments. Of the options only ``-W ignore`` is known.
        log: what it prints is added to this file, and to ``errors`` what it prints to stderr, by default to the same.
        environment: variables besides those of this process. Folders of a ``PYTHONPATH`` are searched first.
    """

    def __init__(self, words: Sequence, log: Path, errors: Path | None = None, **environment: str):
        os.environ["OMP_NUM_THREADS"] = "1"  # for the process that the others are forked from
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(PRELOADED))
        variables = {**os.environ, **environment}
        arguments = ([str(word) for word in words], str(log), str(errors or log), variables)
        self._process: ForkServerProcess = context.Process(target=_run, args=arguments)
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Exit status, negative for a signal, or None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Exit status; ends the program if that takes more than ``timeout`` seconds, or if the waiting is interrupted.

        Raises:
            TimeoutError: it had to be ended.
        """
        try:
            self._process.join(timeout)
        finally:
            in_time = self.poll() is not None
            self.send_signal(signal.SIGKILL)
        if not in_time:
            raise TimeoutError(f"a program still ran after {timeout} s")
        return self.poll()

    def send_signal(self, number: int) -> None:
        """To the program and the processes that it has started; one that has ended is left alone."""
        if self.poll() is None:
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:  # so young that it has no group of its own yet
                os.kill(self.pid, number)
            if number == signal.SIGKILL:
                self._process.join()


def run(*words, **environment: str) -> subprocess.CompletedProcess:
    """Run a program to its end, as ``subprocess.run`` with captured text does; see ``Program``."""
    with tempfile.TemporaryDirectory() as folder:
        out, errors = Path(folder, "out"), Path(folder, "errors")
        status = Program(words, out, errors, **environment).wait()
        return subprocess.CompletedProcess(words, status, out.read_text(), errors.read_text())


def _run(words: list[str], out: str, errors: str, variables: dict[str, str]) -> None:
    """The program, in the forked process."""
    os.setsid()
    for number, path in ((1, out), (2, errors)):
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        os.dup2(file, number)
        os.close(file)
    os.environ.clear()
    os.environ.update(variables)
    os.chdir(ROOT)
    if words[:2] == ["-W", "ignore"] or variables.get("PYTHONWARNINGS") == "ignore":
        warnings.simplefilter("ignore")
        words = words[2:] if words[0] == "-W" else words
    sys.path[:0] = [place for place in variables.get("PYTHONPATH", "").split(os.pathsep) if place]
    if words[0] == "-c":
        sys.argv = ["-c", *words[2:]]
        exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.argv = words
        sys.path.insert(0, str((ROOT / words[0]).parent))
        runpy.run_path(words[0], run_name="__main__")
