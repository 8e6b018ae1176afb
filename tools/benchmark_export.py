#!/usr/bin/env python3
"""Export a detector to several formats and time them against PyTorch, side by side in one run."""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from tqdm import tqdm

from d2x.config.arguments import config_parser, read_config
from d2x.data.prepare import prepare_classes
from d2x.deploy.benchmark import PYTORCH, Worker, measure, serve, table
from d2x.deploy.export import ExportOptions, export_model
from d2x.deploy.manifest import PRECISIONS
from d2x.deploy.runtimes import FORMATS
from d2x.detectors import get_deployment
from d2x.errors import one_line_errors
from d2x.inference.predictor import Predictor

DEFAULT = ("pytorch-compiled", "torch-export", "onnx", "openvino", "openvino:fp16", "openvino:int8", "ncnn", "caffe")
EPILOG = """A subject is pytorch, pytorch-compiled, or a format with an optional precision, as in openvino:int8. Every
subject has a process of its own; they run in turns, and what counts are the ratios to pytorch within a round. Inputs
are noise of one size; int8 is calibrated with noise, so take its AP from tools/export_model.py.

example: tools/benchmark_export.py --config-file ... --weights ... --size 512 512 --threads 2
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = config_parser(__doc__, EPILOG)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--size", nargs=2, type=int, default=(512, 512), metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--batch", type=int, default=1, help="images a call (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of each subject (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="turns of each subject (default %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="calls a turn (default %(default)s)")
    parser.add_argument("--subjects", nargs="+", default=DEFAULT, help=f"default: {' '.join(DEFAULT)}")
    parser.add_argument("--output", metavar="JSON", help="also write the numbers there")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    for subject in args.subjects:
        name, _, precision = subject.partition(":")
        if subject not in PYTORCH and (name not in FORMATS or (precision or "fp32") not in PRECISIONS):
            parser.error(f"--subjects {subject}: pytorch, pytorch-compiled or FORMAT[:PRECISION]")
    return args


def export_subject(cfg: CfgNode, subject: str, folder: Path, args: argparse.Namespace) -> None:
    """Export one subject at the size and batch of the benchmark, unchecked."""
    name, _, precision = subject.partition(":")
    precision = precision or "fp32"
    noise = np.random.default_rng(0).integers(0, 256, (4, *args.size, 3), dtype=np.uint8)
    options = ExportOptions(name, size=tuple(args.size), batch=args.batch, precision=precision, check=False)
    export_model(cfg, folder, options, calibration=list(noise) if precision == "int8" else [])


def pytorch_call(cfg: CfgNode, args: argparse.Namespace, *, compiled: bool) -> Callable[[], object]:
    """The same graph in PyTorch: normalisation, network and reading of the boxes."""
    torch.set_num_threads(args.threads)
    cfg.MODEL.DEVICE = "cpu"
    model = Predictor(cfg).model
    deployment = get_deployment(cfg.MODEL.META_ARCHITECTURE)
    graph = deployment.build_graph(model, deployment.FORMS[0]).eval()
    size = [-(-side // graph.facts.divisibility) * graph.facts.divisibility for side in args.size]
    example = graph.example(size, args.batch)
    run = torch.compile(graph) if compiled else graph

    def call():
        with torch.inference_mode():
            return run(*example)

    return call


def main(argv: Sequence[str] | None = None) -> list[dict]:
    """Run; returns the numbers."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = parse_args(words)
    cfg = prepare_classes(read_config(args, "MODEL.WEIGHTS", args.weights))
    if args.worker:
        serve(pytorch_call(cfg, args, compiled=args.worker == "pytorch-compiled"))
        return []
    subjects = ["pytorch", *(subject for subject in args.subjects if subject != "pytorch")]
    workers: list[Worker] = []
    with tempfile.TemporaryDirectory() as scratch:
        try:
            for subject in tqdm(subjects, desc="export and start", unit="subject"):
                command = [sys.executable, __file__, "--worker", subject, *words]
                if subject not in PYTORCH:
                    folder = Path(scratch) / subject.replace(":", "_")
                    export_subject(cfg, subject, folder, args)
                    command = [sys.executable, "-m", "d2x.deploy.benchmark", str(folder), str(args.threads)]
                workers.append(Worker(subject, command))
            timings = measure(workers, rounds=args.rounds, repeats=args.repeats, batch=args.batch)
        finally:
            for worker in workers:
                worker.close()
    print(table(timings))
    numbers = [timing._asdict() for timing in timings]
    if args.output:
        Path(args.output).write_text(json.dumps(numbers, indent=2) + "\n", encoding="utf-8")
    return numbers


if __name__ == "__main__":
    with one_line_errors():
        main()
