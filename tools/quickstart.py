#!/usr/bin/env python3
"""Train a small detector on the embedded data set on the CPU, evaluate it, and draw what it learnt."""

import argparse
import os
import sys
import time
from pathlib import Path

import torch
from detectron2.data import DatasetCatalog
from detectron2.engine import default_setup

from d2x.config.load import load_cfg
from d2x.data.prepare import prepare_data
from d2x.engine.launch import launch
from d2x.engine.logs import setup_logs
from d2x.engine.trainer import Trainer
from d2x.errors import one_line_errors
from d2x.inference.predictor import Predictor
from d2x.report.curves import draw_curves, read_metrics
from d2x.report.predictions import draw_prediction_grid

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = {
    "centerx": ROOT / "projects/CenterX/configs/quickstart.yaml",
    "plain_detr": ROOT / "projects/PlainDETR/configs/quickstart.yaml",
}
DEMO = "python -m d2x.tools.demo" if __package__ == "d2x.tools" else "tools/demo.py"  # installed, or in a checkout
PROCESSES = {"centerx": 1, "plain_detr": 2}  # Plain-DETR's many small operations gain little from a second thread


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("detector", nargs="?", default="centerx", choices=sorted(CONFIGS))
    parser.add_argument("--output", help="default: output/quickstart, or output/quickstart_plain_detr")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and data order (default 0)")
    parser.add_argument(
        "--num-processes",
        type=int,
        metavar="N",
        help="that train together; default on a CPU: " + ", ".join(f"{n} for {name}" for name, n in PROCESSES.items()),
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides")
    return parser.parse_intermixed_args(argv)


def setup(args: argparse.Namespace, output: Path):
    """The config of the run."""
    cfg = load_cfg(str(CONFIGS[args.detector]), args.opts)
    cfg.OUTPUT_DIR, cfg.SEED, cfg.PROGRESS_BAR = str(output), args.seed, True
    return prepare_data(cfg)


def train(args: argparse.Namespace, output: Path) -> None:
    """Train, or go on with a run that was interrupted, in one of the processes."""
    cfg = setup(args, output)
    os.makedirs(output, exist_ok=True)
    setup_logs(cfg.OUTPUT_DIR, quiet=True)
    default_setup(cfg, args)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run everything; returns the final COCO metrics by name (``bbox/AP``, ...)."""
    args = parse_args(argv)
    folder = "quickstart" if args.detector == "centerx" else f"quickstart_{args.detector}"
    output = Path(args.output) if args.output else Path("output") / folder
    final = output / "model_final.pth"
    processes = args.num_processes or (1 if torch.cuda.is_available() else PROCESSES[args.detector])
    start = time.perf_counter()
    cfg = setup(args, output)
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        DatasetCatalog.get(name)  # draws it once, before several processes look for it
    if final.exists():
        print(f"{final} is there already: drawing and reporting only (delete {output} to train again)")
    else:
        launch(train, (args, output), processes=processes, dist_url="auto")
        if not final.exists():  # a signal ended it
            sys.exit(f"stopped before the end: the same command goes on with {output}")
    cfg.MODEL.WEIGHTS = str(final)
    minutes = (time.perf_counter() - start) / 60
    draw_curves(output / "metrics.json", output / "curves.png")
    draw_prediction_grid(Predictor(cfg), cfg.DATASETS.TEST[0], output / "predictions.png")
    series = read_metrics(output / "metrics.json")
    results = {name: values[-1] for name, (_, values) in series.items() if name.startswith("bbox/")}
    scores = f"AP {results['bbox/AP']:.1f}, AP50 {results['bbox/AP50']:.1f}"
    print(
        f"""
{args.detector} on {cfg.DATASETS.TEST[0]}: {scores} ({minutes:.1f} minutes)
look at   {output}/predictions.png   ground truth beside predictions
          {output}/curves.png        losses, learning rate, AP
also in   {output}: model_final.pth, config.yaml, metrics.json, log.txt, TensorBoard events
next      {DEMO} --config-file {output}/config.yaml --input IMAGE MODEL.WEIGHTS {output}/model_final.pth
          README.md, "Your own data\""""
    )
    return results


if __name__ == "__main__":
    with one_line_errors():
        main()
