"""Benchmark of exported models beside PyTorch: each in a process of its own, in turns, as ratios."""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from d2x.deploy.infer import load

PYTORCH = ("pytorch", "pytorch-compiled")


class Timing(NamedTuple):
    """What was measured of one subject.

    Attributes:
        name: of the subject.
        milliseconds: median time of one call.
        images_per_second: at that time.
        speed_up: median over the rounds of (time of the first subject / its own) in the same round.
        spread: smallest and largest of those.
        memory_mb: peak resident memory of its process.
        memory_share: that of the first subject's.
    """

    name: str
    milliseconds: float
    images_per_second: float
    speed_up: float
    spread: tuple[float, float]
    memory_mb: float
    memory_share: float


class Worker:
    """A process that holds one subject and runs it when told to.

    Args:
        name: of the subject.
        command: starts the process, which calls ``serve``.
    """

    def __init__(self, name: str, command: Sequence[str]):
        self.name = name
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdin and process.stdout  # as asked for
        self._process, self._to, self._from = process, process.stdin, process.stdout
        self._read()  # it is ready

    def run(self, repeats: int) -> dict[str, float]:
        """``median`` seconds of so many calls, and ``memory_mb``."""
        print(repeats, file=self._to, flush=True)
        return self._read()

    def close(self) -> None:
        """End the process."""
        self._to.close()
        self._process.wait()

    def _read(self) -> dict[str, float]:
        for line in self._from:
            if line.startswith("{"):
                return json.loads(line)
        raise ValueError(f"benchmark of {self.name}: its process ended with status {self._process.wait()}")


def serve(call: Callable[[], object], warm_up: int = 3) -> None:
    """The worker's side: call, then answer each number on the standard input with a line of json."""
    for _ in range(warm_up):
        call()
    print(json.dumps({"ready": 1}), flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        print(json.dumps({"median": statistics.median(times), "memory_mb": peak_memory_mb()}), flush=True)


def peak_memory_mb() -> float:
    """Most memory that this process has held so far."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage there counts what the parent held when it started this process
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def exported_call(folder: str | Path, threads: int) -> Callable[[], object]:
    """One call of an exported model's runtime on noise, as large as its fixed input."""
    detector = load(folder, threads=threads)
    manifest = detector.manifest
    assert manifest.size and manifest.batch  # of a model that was exported for a benchmark
    noise = np.random.default_rng(0).integers(0, 256, (3, *manifest.size)).astype(np.float32)
    feeds = detector.feeds([(noise, manifest.size)] * manifest.batch)
    return lambda: detector.runtime(feeds)


def measure(workers: Sequence[Worker], *, rounds: int, repeats: int, batch: int) -> list[Timing]:
    """Let the workers run in turns, so that whatever else the machine does meets all of them.

    Args:
        workers: the first is what the others are compared with.
        rounds: turns of each.
        repeats: calls a turn.
        batch: images a call.
    """
    rows = [[worker.run(repeats) for worker in workers] for _ in range(rounds)]
    seconds = np.array([[result["median"] for result in row] for row in rows])
    memory = np.array([[result["memory_mb"] for result in row] for row in rows]).max(axis=0)
    ratios = seconds[:, :1] / seconds
    timings = []
    for i, worker in enumerate(workers):
        median, spread = float(np.median(seconds[:, i])), (float(ratios[:, i].min()), float(ratios[:, i].max()))
        speed_up, share = float(np.median(ratios[:, i])), float(memory[i] / memory[0])
        timings.append(Timing(worker.name, 1e3 * median, batch / median, speed_up, spread, float(memory[i]), share))
    return timings


def table(timings: Sequence[Timing]) -> str:
    """The timings as a Markdown table."""
    lines = ["| | times faster | lowest to highest | ms | images/s | peak MB | times the memory |"]
    lines.append("|---" * 7 + "|")
    for t in timings:
        lines.append(
            f"| {t.name} | {t.speed_up:.2f} | {t.spread[0]:.2f} to {t.spread[1]:.2f} | {t.milliseconds:.1f}"
            f" | {t.images_per_second:.1f} | {t.memory_mb:.0f} | {t.memory_share:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    serve(exported_call(sys.argv[1], int(sys.argv[2])))
