#!/usr/bin/env python3
"""The paper's ladder in miniature: absolute position, + BoxRPB, + re-parameterised boxes, on the embedded data set.

Trains every rung with every seed for the same number of iterations, one process a run, and writes ladder.md (mean and
spread), ladder.png (learning curves) and ladder.json into the output folder. Finished runs are kept, unfinished ones
go on from their last checkpoint, so the command may be interrupted and repeated.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import matplotlib
from tqdm import tqdm

from d2x.atomic_files import atomic_write
from d2x.config.load import load_cfg
from d2x.errors import one_line_errors
from d2x.report.curves import read_metrics

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
CONFIG = ROOT / "projects/PlainDETR/configs/quickstart.yaml"
METRICS = ("AP", "AP50", "AP75")

ANCHOR_SIZE = "MODEL.PLAIN_DETR.PROPOSALS.ANCHOR_SIZE"
# Mean side in pixels of the embedded data set's images: turns the base config's anchors into fractions of an image.
IMAGE_SIDE = 128

# Boxes over the image's size: the coder, its code of positions, and the weight of its L1. The anchors' side is added
# in ``overrides``.
_NORMALISED = {
    "MODEL.PLAIN_DETR.BOX_CODER": "sigmoid",
    "MODEL.PLAIN_DETR.POSITION_ENCODING": "sine",
    "MODEL.PLAIN_DETR.LOSS.BOX_WEIGHT": "5.0",
    "MODEL.PLAIN_DETR.MATCHER.BOX_COST": "5.0",
}


class Rung(NamedTuple):
    """One model of the ladder: its title, and config keys over those of the base config."""

    title: str
    overrides: dict[str, str]


# From the bottom; the last is the base config as it is, but for what makes it the paper's full model.
RUNGS = {
    "absolute": Rung("absolute position", {**_NORMALISED, "MODEL.PLAIN_DETR.BOX_RPB.KIND": "none"}),
    "boxrpb": Rung("+ BoxRPB", {**_NORMALISED, "MODEL.PLAIN_DETR.BOX_RPB.KIND": "axial"}),
    "delta": Rung(
        "+ re-parameterised boxes",
        {"MODEL.PLAIN_DETR.BOX_RPB.KIND": "axial", "MODEL.PLAIN_DETR.BOX_CODER": "delta"},
    ),
}


def overrides(rung: str, config_file: str, base: dict[str, str]) -> dict[str, str]:
    """All keys of a run over those of the config file; the rung's own win, nothing may turn one rung into another."""
    cfg = load_cfg(config_file, [word for pair in base.items() for word in pair])
    own = dict(RUNGS[rung].overrides)
    if own["MODEL.PLAIN_DETR.BOX_CODER"] == "sigmoid":
        own[ANCHOR_SIZE] = str(cfg.MODEL.PLAIN_DETR.PROPOSALS.ANCHOR_SIZE / IMAGE_SIDE)
    return {**base, **own}


class Result(NamedTuple):
    """A finished run.

    Attributes:
        rung, seed: which.
        scores: final COCO metrics by name, per cent.
        curve: (iterations, AP) of every evaluation.
        iterations: trained.
        seconds: of training, evaluation left out; None for a run too short to tell.
    """

    rung: str
    seed: int
    scores: dict[str, float]
    curve: tuple[list[int], list[float]]
    iterations: int
    seconds: float | None


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: benchmarks/ladder.py --seeds 0 1 2 --output output/ladder --set SOLVER.MAX_ITER 1500",
    )
    parser.add_argument("--config-file", default=str(CONFIG), help="what all rungs share (default: the quick start's)")
    parser.add_argument("--output", default="output/ladder", help="folder of runs and results (default %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--rungs", nargs="+", choices=list(RUNGS), default=list(RUNGS), help="default: all")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time; they share the cores (default 1)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY VALUE", help="config overrides for every run")
    args = parser.parse_args(argv)
    if len(args.set) % 2:
        raise ValueError(f"--set takes KEY VALUE pairs, got an odd number of words: {' '.join(args.set)}")
    if args.jobs < 1:
        raise ValueError("--jobs must be at least 1")
    return args


def run(rung: str, seed: int, args: argparse.Namespace) -> Result:
    """Train one rung with one seed, or go on with it, or read its result.

    Raises:
        ValueError: the folder holds a run of other settings, or the training failed.
    """
    folder = Path(args.output) / f"{rung}_seed{seed}"
    base = dict(zip(args.set[::2], args.set[1::2]))
    keys = {**overrides(rung, args.config_file, base), "SEED": str(seed)}
    settings = {"config": Path(args.config_file).read_text(encoding="utf-8"), "overrides": keys}
    note = folder / "ladder_settings.json"
    if note.exists():
        if json.loads(note.read_text(encoding="utf-8")) != settings:
            raise ValueError(f"{folder} holds a run of other settings: delete it, or choose another --output")
    else:
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(note) as file:
            file.write(json.dumps(settings, indent=1).encode())
    if not (folder / "model_final.pth").exists():
        keys["OUTPUT_DIR"] = str(folder)
        _train(folder, [word for pair in keys.items() for word in pair], args)
    return read_result(folder, rung, seed)


def _train(folder: Path, words: Sequence[str], args: argparse.Namespace) -> None:
    command = [sys.executable, str(ROOT / "tools/train_net.py"), "--config-file", args.config_file, "--resume"]
    environment = dict(os.environ)
    if args.jobs > 1:
        environment["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // args.jobs))
    with open(folder / "output.txt", "ab") as log:
        done = subprocess.run([*command, *words], stdout=log, stderr=subprocess.STDOUT, env=environment, check=False)
    if done.returncode or not (folder / "model_final.pth").exists():
        last = (folder / "output.txt").read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
        raise ValueError(f"training in {folder} failed: {' '.join(last)} (all of it: {folder / 'output.txt'})")


def read_result(folder: Path, rung: str, seed: int) -> Result:
    """The result of a finished run, from its ``metrics.json``."""
    series = read_metrics(folder / "metrics.json")
    if "bbox/AP" not in series:
        raise ValueError(f"{folder}/metrics.json holds no evaluation")
    iterations, aps = series["bbox/AP"]
    trained = iterations[-1]  # the last evaluation is written after the last step
    scores = {name: series[f"bbox/{name}"][1][-1] for name in METRICS if f"bbox/{name}" in series}
    seconds = statistics.median(series["time"][1]) * trained if "time" in series else None
    return Result(rung, seed, scores, (iterations, aps), trained, seconds)


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and sample standard deviation (0 for a single value)."""
    return statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def write_table(results: Sequence[Result], output: Path, config: str) -> str:
    """Write the markdown table; returns it."""
    lines = [
        "| model | AP, mean ± s.d. | AP50 | AP75 | AP of each seed | iterations | training, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, rung in RUNGS.items():
        mine = [result for result in results if result.rung == name]
        if not mine:
            continue
        cells = ["{:.1f} ± {:.1f}".format(*spread([one.scores[key] for one in mine])) for key in METRICS]
        each = ", ".join(f"{one.scores['AP']:.1f}" for one in sorted(mine, key=lambda one: one.seed))
        budget = sorted({one.iterations for one in mine})
        times = [one.seconds for one in mine if one.seconds is not None]
        seconds = f"{statistics.mean(times):.0f}" if times else "-"
        cells += [each, " or ".join(map(str, budget)), seconds]
        lines.append(f"| {rung.title} | {' | '.join(cells)} |")
    seeds = sorted({result.seed for result in results})
    text = "\n".join(lines) + (
        f"\n\nSeeds {', '.join(map(str, seeds))}; s.d. is the sample standard deviation over them. Every run has the"
        f" settings of `{config}` except for what its rung changes, and the same number of iterations.\n"
    )
    with atomic_write(output) as file:
        file.write(text.encode())
    return text


def draw(results: Sequence[Result], output: Path) -> None:
    """Learning curves: mean AP of each rung, and the range over its seeds."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for name, rung in RUNGS.items():
        curves = [dict(zip(*result.curve)) for result in results if result.rung == name]
        if not curves:
            continue
        shared = sorted(set.intersection(*map(set, curves)))
        values = [[curve[iteration] for curve in curves] for iteration in shared]
        (line,) = axes.plot(shared, [statistics.mean(row) for row in values], marker="o", label=rung.title)
        low, high = [min(row) for row in values], [max(row) for row in values]
        axes.fill_between(shared, low, high, color=line.get_color(), alpha=0.2)
    count = len({result.seed for result in results})
    axes.set(xlabel="iteration", ylabel="AP, validation", title=f"mean and range of {count} seeds", ylim=(0, None))
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left")
    figure.savefig(output, dpi=120)
    plt.close(figure)


def main(argv: list[str] | None = None) -> list[Result]:
    """Run everything that is missing; returns all results."""
    args = parse_args(argv)
    if not Path(args.config_file).is_file():
        raise FileNotFoundError(f"config file not found: {args.config_file}")
    todo = [(rung, seed) for seed in dict.fromkeys(args.seeds) for rung in RUNGS if rung in args.rungs]
    results, start = [], time.perf_counter()
    # Seed by seed, so that an interrupted ladder has whole ladders in it.
    with ThreadPoolExecutor(args.jobs) as pool, tqdm(total=len(todo), desc="ladder", unit="run") as progress:
        for result in pool.map(lambda item: run(*item, args), todo):
            results.append(result)
            scores = ", ".join(f"{name} {value:.1f}" for name, value in result.scores.items())
            progress.write(f"{RUNGS[result.rung].title}, seed {result.seed}: {scores}")
            progress.update()
    output = Path(args.output)
    config = Path(args.config_file).resolve()
    shown = str(config.relative_to(ROOT)) if config.is_relative_to(ROOT) else config.name
    print("\n" + write_table(results, output / "ladder.md", shown))
    draw(results, output / "ladder.png")
    with atomic_write(output / "ladder.json") as file:
        file.write(json.dumps([result._asdict() for result in results], indent=1).encode())
    print(f"{output}: ladder.md, ladder.png, ladder.json ({(time.perf_counter() - start) / 60:.1f} minutes)")
    return results


if __name__ == "__main__":
    with one_line_errors():
        main()
