#!/usr/bin/env python3
"""Train a small detector on the embedded data set on the CPU, evaluate it, and draw what it learnt."""

import argparse
import os
import sys
import time
from pathlib import Path

from detectron2.engine import default_setup

import centerx  # noqa: F401  (registers its models and recipe)
import plain_detr  # noqa: F401
from d2x.engine.errors import one_line_errors
from d2x.engine.load_cfg import load_cfg, prepare_data
from d2x.engine.logs import setup_logs
from d2x.engine.predictor import Predictor
from d2x.engine.trainer import Trainer
from d2x.report.curves import draw_curves, read_metrics
from d2x.report.predictions import draw_prediction_grid

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = {
    "centerx": ROOT / "projects/CenterX/configs/quickstart.yaml",
    "plain_detr": ROOT / "projects/PlainDETR/configs/quickstart.yaml",
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("detector", nargs="?", default="centerx", choices=sorted(CONFIGS))
    parser.add_argument("--output", help="default: output/quickstart, or output/quickstart_plain_detr")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and data order (default 0)")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides")
    return parser.parse_intermixed_args(argv)


def train(args: argparse.Namespace, output: Path):
    """Train, or go on with a run that was interrupted; returns the config with the final weights in it."""
    cfg = load_cfg(str(CONFIGS[args.detector]), args.opts)
    cfg.OUTPUT_DIR, cfg.SEED, cfg.PROGRESS_BAR = str(output), args.seed, True
    prepare_data(cfg)
    os.makedirs(output, exist_ok=True)
    setup_logs(cfg.OUTPUT_DIR, quiet=True)
    default_setup(cfg, args)
    final = output / "model_final.pth"
    if final.exists():
        print(f"{final} is there already: drawing and reporting only (delete {output} to train again)")
    else:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=True)
        trainer.train()
        if not final.exists():  # a signal ended it
            sys.exit(f"stopped before the end: the same command goes on with {output}")
    cfg.MODEL.WEIGHTS = str(final)
    return cfg


def main(argv: list[str] | None = None) -> dict[str, float]:
    """Run everything; returns the final COCO metrics by name (``bbox/AP``, ...)."""
    args = parse_args(argv)
    folder = "quickstart" if args.detector == "centerx" else f"quickstart_{args.detector}"
    output = Path(args.output) if args.output else Path("output") / folder
    start = time.perf_counter()
    cfg = train(args, output)
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
next      tools/demo.py --config-file {output}/config.yaml --input IMAGE MODEL.WEIGHTS {output}/model_final.pth
          README.md, "Your own data\""""
    )
    return results


if __name__ == "__main__":
    with one_line_errors():
        main()
