"""Timing of variants side by side: interleaved, medians, ratios inside one run.

Every round runs each variant once, in turn, so that whatever slows the machine down slows all of them. A ratio is the
median time of a variant over the median time of the baseline. Beside the wall clock the CPU time of this process is
taken: it does not count other programs' work, so where both ratios differ the machine was busy. Other programs' share
of the machine is measured as well, and said in the result.
"""

import argparse
import contextlib
import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from tqdm import tqdm

Run = Callable[[], object]

# Share of the machine that other programs may take before the result says so.
QUIET = 0.05


class Timing(NamedTuple):
    """One variant's rounds: wall-clock and CPU seconds."""

    wall: list[float]
    cpu: list[float]


class Comparison(NamedTuple):
    """One variant against its baseline.

    Attributes:
        what: was done.
        variant, baseline: names.
        seconds, baseline_seconds: medians, wall clock.
        ratio, spread: of the medians; lowest and highest ratio of a round.
        cpu_ratio: of the medians of CPU time.
        bar: largest ratio wanted; None where there is none.
        memory, baseline_memory: peak bytes over those of the inputs; None where not measured.
        memory_bar: largest ratio of memory wanted.
        others: share of the machine that other programs took.
    """

    what: str
    variant: str
    baseline: str
    seconds: float
    baseline_seconds: float
    ratio: float
    spread: tuple[float, float]
    cpu_ratio: float
    bar: float | None
    memory: int | None
    baseline_memory: int | None
    memory_bar: float | None
    others: float

    @property
    def memory_ratio(self) -> float | None:
        """Memory over the baseline's."""
        return self.memory / self.baseline_memory if self.memory is not None and self.baseline_memory else None


class Bar(NamedTuple):
    """What a variant must reach: largest ratio of time, and of memory."""

    time: float | None = None
    memory: float | None = None


class OthersShare:
    """Watches what share of the machine other programs take, from its construction on."""

    def __init__(self):
        self._before, self._start = self._others(), time.perf_counter()

    def share(self) -> float:
        """0 to 1, so far."""
        available = (time.perf_counter() - self._start) * (os.cpu_count() or 1)
        return min(1.0, max(0.0, (self._others() - self._before) / available))

    @staticmethod
    def _others() -> float:
        """CPU seconds since the machine started, without those of this process and its children."""
        times, own = psutil.cpu_times(), psutil.Process()
        busy = sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)
        mine = own.cpu_times()
        total = mine.user + mine.system + mine.children_user + mine.children_system
        for child in own.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                times = child.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return busy - total


def add_options(parser: argparse.ArgumentParser, name: str) -> None:
    """The options that every benchmark has."""
    parser.add_argument("--quick", action="store_true", help="smallest sizes and two rounds: does it run at all")
    parser.add_argument("--repeats", type=int, default=0, help="rounds (default 7, with --quick 2)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads of torch (default: all cores)")
    parser.add_argument("--output", default="output/benchmarks", help="folder of the results (default %(default)s)")
    parser.set_defaults(name=name)


def prepare(args: argparse.Namespace) -> None:
    """Threads, seed and rounds as the options say.

    Raises:
        ValueError: a number below zero.
    """
    if args.repeats < 0 or args.threads < 0:
        raise ValueError("--repeats and --threads must not be negative")
    args.repeats = args.repeats or (2 if args.quick else 7)
    torch.set_num_threads(args.threads or os.cpu_count() or 1)
    torch.manual_seed(0)


def measure(
    variants: Mapping[str, Run], *, repeats: int, label: str = "", warm_up: bool = True
) -> tuple[dict[str, Timing], float]:
    """Run every variant once to warm up, then ``repeats`` rounds of all.

    Args:
        warm_up: False where the caller has run them already.

    Returns:
        Timings by name, and the share of the machine that other programs took meanwhile, 0 to 1.
    """
    for run in variants.values() if warm_up else ():
        run()
    timings = {name: Timing([], []) for name in variants}
    busy = OthersShare()
    for _ in tqdm(range(repeats), desc=label or "rounds", unit="round", leave=False):
        for name, run in variants.items():
            gc.collect()
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            timings[name].cpu.append(time.process_time() - cpu)
            timings[name].wall.append(time.perf_counter() - wall)
    return timings, busy.share()


def compare(
    what: str,
    variants: Mapping[str, Run],
    *,
    baseline: str,
    repeats: int,
    bars: Mapping[str, Bar] | None = None,
    memory: Mapping[str, int] | None = None,
    warm_up: bool = True,
) -> list[Comparison]:
    """Measure ``variants``, of which one is the ``baseline``, and compare each of the others with it.

    Args:
        bars: by variant.
        memory: peak bytes by variant, see ``benchmarks.memory``.
        warm_up: see ``measure``.
    """
    timings, others = measure(variants, repeats=repeats, label=what, warm_up=warm_up)
    base, memory = timings[baseline], memory or {}
    found = []
    for name, timing in timings.items():
        if name == baseline:
            continue
        bar = (bars or {}).get(name, Bar())
        rounds = [mine / other for mine, other in zip(timing.wall, base.wall)]
        found.append(
            Comparison(
                what=what,
                variant=name,
                baseline=baseline,
                seconds=statistics.median(timing.wall),
                baseline_seconds=statistics.median(base.wall),
                ratio=statistics.median(timing.wall) / statistics.median(base.wall),
                spread=(min(rounds), max(rounds)),
                cpu_ratio=statistics.median(timing.cpu) / max(statistics.median(base.cpu), 1e-9),
                bar=bar.time,
                memory=memory.get(name),
                baseline_memory=memory.get(baseline),
                memory_bar=bar.memory,
                others=others,
            )
        )
    return found


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_GiB": round(psutil.virtual_memory().total / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
