#!/usr/bin/env python3
"""Submit a training to a cluster through submitit (extra "cluster"), which queues it again when it is cut off."""

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from d2x.errors import one_line_errors

ROOT = Path(__file__).resolve().parent.parent
EPILOG = """examples:
  Slurm     tools/submit.py --nodes 2 --processes 8 --gpus 8 --minutes 720 --set slurm_partition=gpu -- \\
              --config-file projects/CenterX/configs/centernet_R_50_70ep.yaml OUTPUT_DIR /nfs/run1
  here      tools/submit.py --cluster local --wait -- --config-file projects/CenterX/configs/quickstart.yaml

What follows -- is tools/train_net.py's; --resume is added. OUTPUT_DIR must be a folder that all nodes share.
"""


class Training:
    """One process of a job, as submitit calls it.

    Before the job's time is up, or when it is preempted, submitit calls ``checkpoint``: the training finishes its step
    and saves, then the job is queued again and goes on.
    """

    def __init__(self, words: list[str]):
        self._words = words
        self._process: subprocess.Popen | None = None

    def __call__(self) -> None:
        import submitit

        environment = submitit.helpers.TorchDistributedEnvironment()
        environment.export(set_cuda_visible_devices=False)
        if environment.world_size == 1:
            for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
                os.environ.pop(name, None)
        self._process = subprocess.Popen([sys.executable, "tools/train_net.py", "--resume", *self._words], cwd=ROOT)
        status = self._wait()
        if status:
            raise RuntimeError(f"the training ended with exit status {status}; what it printed says why")

    def checkpoint(self):
        """Called from a signal handler."""
        import submitit

        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._wait()
        return submitit.helpers.DelayedSubmission(Training(self._words))

    def _wait(self) -> int:
        # poll, and not wait: a handler that is called within wait could not wait itself
        while self._process.poll() is None:
            time.sleep(0.2)
        return self._process.returncode


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cluster", help="slurm, local or debug; default: Slurm if it is there, else local")
    parser.add_argument("--folder", default="output/jobs", help="logs of the jobs (default output/jobs)")
    parser.add_argument("--name", default="train", help="of the job")
    parser.add_argument("--nodes", type=int, default=1, help="machines")
    parser.add_argument("--processes", type=int, default=1, help="on each machine; on GPUs one a GPU")
    parser.add_argument("--gpus", type=int, default=0, help="on each machine")
    parser.add_argument("--cpus", type=int, default=4, help="of each process")
    parser.add_argument("--minutes", type=int, default=240, help="time limit of one stretch")
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="further parameters of submitit's executor"
    )
    parser.add_argument("--wait", action="store_true", help="until the job has ended; exit status 1 if it failed")
    parser.add_argument("train", nargs=argparse.REMAINDER, help="-- and arguments of tools/train_net.py")
    args = parser.parse_args(argv)
    args.train = args.train[1:] if args.train[:1] == ["--"] else args.train
    return args


def main(argv: list[str] | None = None) -> int:
    """Submit; returns the exit status."""
    args = parse_args(argv)
    try:
        import submitit
    except ImportError as error:
        raise ValueError("submitit is not installed: pip install '.[cluster]'") from error
    pairs = [pair.partition("=") for pair in args.set]
    if not args.train or any(not sign for _, sign, _ in pairs):
        raise ValueError("usage: tools/submit.py [options] -- arguments of tools/train_net.py; --set takes KEY=VALUE")
    executor = submitit.AutoExecutor(folder=args.folder, cluster=args.cluster)
    executor.update_parameters(
        name=args.name,
        nodes=args.nodes,
        tasks_per_node=args.processes,
        gpus_per_node=args.gpus,
        cpus_per_task=args.cpus,
        timeout_min=args.minutes,
        **{key: int(value) if value.isdigit() else value for key, _, value in pairs},
    )
    job = executor.submit(Training(args.train))
    print(f"job {job.job_id}, logs below {job.paths.folder}")
    if not args.wait:
        return 0
    job.wait()
    error = job.exception()
    if error is not None:
        print(f"error: job {job.job_id} failed: {' '.join(str(error).split())[-300:]}", file=sys.stderr)
    return 0 if error is None else 1


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
