"""Training CenterX's quick start: images a second of two processes with a core each against one process with one core.

Every process is held to a core of its own and computes with one thread; each has the same number of images in a step.
Gradients are averaged over gloo. Jobs of one and of two processes take turns.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from tqdm import tqdm

from benchmarks.harness import Comparison, OthersShare, add_options, prepare
from benchmarks.report import write
from d2x.config.load import load_cfg
from d2x.data.prepare import prepare_data
from d2x.engine.launch import launch
from d2x.engine.trainer import Trainer
from d2x.errors import one_line_errors

ROOT = Path(__file__).resolve().parent.parent
CONFIG = "projects/CenterX/configs/quickstart.yaml"
SPEED_UP = 1.8
WARM_UP = 3  # steps


class StepTimes(HookBase):
    """When each step of a training began."""

    def __init__(self):
        self.began: list[float] = []

    def before_step(self) -> None:
        self.began.append(time.perf_counter())


def train(config_file: str, opts: list[str], batch: int, steps: int, result: str) -> None:
    """One process of a job: train; the main process writes seconds per step, from the start of one to the next's.

    Args:
        batch: images of each process in a step.
        result: path of the json file.

    Raises:
        ValueError: fewer cores than processes.
    """
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < comm.get_world_size():
        raise ValueError(f"{comm.get_world_size()} processes need as many cores, there are {len(cores)}")
    os.sched_setaffinity(0, {cores[comm.get_rank()]})
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "SOLVER.IMS_PER_BATCH", str(batch * comm.get_world_size()), "SOLVER.MAX_ITER", str(WARM_UP + steps + 1),
            "SOLVER.WARMUP_ITERS", "1", "SOLVER.CHECKPOINT_PERIOD", "1000000", "TEST.EVAL_PERIOD", "0",
            "DATASETS.TEST", "()", "DATALOADER.NUM_WORKERS", "0", "SEED", "0", "OUTPUT_DIR", folder,
        ]  # fmt: skip
        trainer = Trainer(prepare_data(load_cfg(config_file, [*words, *opts])))
        times = StepTimes()
        trainer.register_hooks([times])
        trainer.train()
        comm.synchronize()  # before the folder goes, which others may still write to
    began = times.began[WARM_UP:]
    if comm.is_main_process():
        Path(result).write_text(json.dumps([after - before for before, after in zip(began, began[1:])]))


def job(processes: int, args: argparse.Namespace, folder: str) -> list[float]:
    """Start a training in processes of its own; its seconds per step.

    Raises:
        ValueError: it failed; what it printed is on standard error.
    """
    result = Path(folder) / "times.json"
    words = [sys.executable, "-m", "benchmarks.two_processes", "--job", str(processes), "--result", str(result)]
    words += ["--config-file", args.config_file, "--batch", str(args.batch), "--steps", str(args.steps)]
    finished = subprocess.run([*words, "--set", *args.set], cwd=ROOT, stdout=subprocess.DEVNULL)
    if finished.returncode:
        raise ValueError(f"a training in {processes} process(es) ended with exit status {finished.returncode}")
    return json.loads(result.read_text())


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.two_processes",
        description=__doc__,
        epilog=f"bar: {SPEED_UP} times as many images a second, which is a time per image <= {1 / SPEED_UP:.3f}x",
    )
    parser.add_argument("--config-file", default=CONFIG, help="(default %(default)s)")
    parser.add_argument("--batch", type=int, default=16, help="images of each process in a step (default %(default)s)")
    parser.add_argument("--steps", type=int, default=40, help="timed in a job (default %(default)s)")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY VALUE", help="config overrides")
    parser.add_argument("--job", type=int, default=0, help=argparse.SUPPRESS)  # what this script starts itself with
    parser.add_argument("--result", help=argparse.SUPPRESS)
    add_options(parser, "two_processes")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> list[Comparison]:
    """Run; returns the comparison, in seconds per image."""
    args = parse_args(argv)
    if args.job:
        words = (args.config_file, args.set, args.batch, args.steps, args.result)
        launch(train, words, processes=args.job, dist_url="auto")
        return []
    args.repeats, args.threads = args.repeats or (1 if args.quick else 5), 1
    prepare(args)
    if args.quick:
        args.batch, args.steps = 2, 2
        args.set = ["DATASETS.TRAIN", "('shapes_tiny_train',)", "INPUT.CROP.SIZE", "[64,64]", *args.set]
    others, medians = OthersShare(), {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        for _ in tqdm(range(args.repeats), desc="rounds", unit="round"):
            for processes, found in medians.items():
                found.append(statistics.median(job(processes, args, folder)) / (processes * args.batch))
    one, two = (statistics.median(found) for found in medians.values())
    rounds = [second / first for first, second in zip(*medians.values())]
    comparison = Comparison(
        what=f"training, {args.batch} images of each process in a step",
        variant="two processes",
        baseline="one",
        seconds=two,
        baseline_seconds=one,
        ratio=two / one,
        spread=(min(rounds), max(rounds)),
        cpu_ratio=float("nan"),
        bar=1 / SPEED_UP,
        memory=None,
        baseline_memory=None,
        memory_bar=None,
        others=others.share(),
    )
    more = f"Time per image. {1 / one:.1f} images/s with one process, {1 / two:.1f} with two: {one / two:.2f} times.\n"
    write([comparison], args.output, args.name, quick=args.quick, more=more)
    return [comparison]


if __name__ == "__main__":
    with one_line_errors():
        main()
