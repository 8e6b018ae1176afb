"""COCO's box statistics: our evaluator with hotcoco against detectron2's COCOEvaluator with pycocotools.

Timed is everything an evaluator does after the model: taking the detections of every image, writing the result files,
computing the statistics and the table of categories. The results of both are compared, number by number.
"""

import argparse
import contextlib
import io
import json
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from benchmarks.growth import draw_growth, growth_table
from benchmarks.harness import Bar, Comparison, add_options, compare, prepare
from benchmarks.report import write
from d2x.errors import one_line_errors
from d2x.evaluation.coco import HotCocoEvaluator

PLAIN, FAST = "pycocotools", "hotcoco"
BAR = Bar(time=0.05)
SIDE = 480
BOXES = 7  # in an image, on average, as in COCO


class Found(NamedTuple):
    """What an evaluation came to: results by name, and the twelve numbers as printed."""

    results: dict[str, float]
    printed: list[str]


def make_data(folder: Path, images: int, detections: int, classes: int) -> tuple[str, list[Instances]]:
    """Register a data set with random boxes, 1 % of them crowds; some detections are near a box.

    Returns:
        Its name, and detections for image ids 1, 2, ...
    """
    rng = np.random.default_rng(0)
    annotations, found = [], []
    for image_id in range(1, images + 1):
        truth = _boxes(rng, rng.poisson(BOXES))
        categories = rng.integers(classes, size=len(truth))
        for (x0, y0, x1, y1), category in zip(truth.tolist(), categories.tolist()):
            width, height = x1 - x0, y1 - y0
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image_id, "category_id": 2 * category + 1,
                 "bbox": [x0, y0, width, height], "area": 0.7 * width * height, "iscrowd": int(rng.random() < 0.01)}
            )  # fmt: skip
        boxes, labels = _boxes(rng, detections), rng.integers(classes, size=detections)
        if len(truth):
            near = np.flatnonzero(rng.random(detections) < 0.3)
            which = rng.integers(len(truth), size=len(near))
            boxes[near] = truth[which] + rng.normal(0, 4, (len(near), 4))
            labels[near] = categories[which]
        found.append(_instances(boxes, rng.random(detections), labels))
    content = {
        "images": [{"id": n, "width": SIDE, "height": SIDE} for n in range(1, images + 1)],
        "annotations": annotations,
        "categories": [{"id": 2 * n + 1, "name": f"class {n}"} for n in range(classes)],
    }
    name, path = f"benchmark_coco_eval_{images}", folder / f"{images}.json"
    path.write_text(json.dumps(content))
    MetadataCatalog.pop(name, None)
    MetadataCatalog.get(name).set(
        json_file=str(path),
        thing_classes=[f"class {n}" for n in range(classes)],
        thing_dataset_id_to_contiguous_id={2 * n + 1: n for n in range(classes)},
    )
    return name, found


def _boxes(rng: np.random.Generator, count: int) -> np.ndarray:
    """(count, 4) xyxy px, from a few pixels to most of the image."""
    sides = np.exp(rng.uniform(2, np.log(0.8 * SIDE), (count, 2)))
    start = rng.uniform(0, SIDE - sides)
    return np.concatenate([start, start + sides], axis=1)


def _instances(boxes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> Instances:
    return Instances(
        (SIDE, SIDE),
        pred_boxes=Boxes(torch.from_numpy(boxes.astype(np.float32))),
        scores=torch.from_numpy(scores.astype(np.float32)),
        pred_classes=torch.from_numpy(labels),
    )


def evaluation(evaluator: COCOEvaluator, detections: Sequence[Instances]) -> Callable[[], Found]:
    """One evaluation of a whole data set, from the model's outputs on."""

    def run() -> Found:
        evaluator.reset()
        for image_id, instances in enumerate(detections, start=1):
            evaluator.process([{"image_id": image_id}], [{"instances": instances}])
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            results = evaluator.evaluate()
        return Found(dict(results["bbox"]), re.findall(r"= (-?\d\.\d{3})\b", printed.getvalue()))

    return run


def require_same(found: Found, expected: Found) -> None:
    """
    Raises:
        ValueError: a result differs in any bit, or one of the twelve printed numbers is another or missing.
    """
    names = [name for name in expected.results if not _same(found.results.get(name), expected.results[name])]
    if names or list(found.results) != list(expected.results):
        raise ValueError(f"the evaluators disagree: {', '.join(names) or list(found.results)}")
    if found.printed != expected.printed or len(found.printed) != 12:
        raise ValueError(f"the evaluators disagree: {found.printed}, {expected.printed}")


def _same(one: float | None, other: float) -> bool:
    return one == other or (one is not None and np.isnan(one) and np.isnan(other))


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coco_eval",
        description=__doc__,
        epilog="bar: time <= 0.05x of pycocotools; --repeats is 2 unless given: pycocotools takes a minute",
    )
    parser.add_argument("--images", type=int, nargs="+", default=[500, 1500, 5000], help="sizes of the data set")
    parser.add_argument("--detections", type=int, default=100, help="in each image (default %(default)s)")
    parser.add_argument("--classes", type=int, default=80, help="(default %(default)s)")
    add_options(parser, "coco_eval")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> list[Comparison]:
    """Run; returns a comparison for each size."""
    args = parse_args(argv)
    args.repeats = args.repeats or 2
    prepare(args)
    images, detections, classes = ([20, 40], 20, 5) if args.quick else (args.images, args.detections, args.classes)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for count in images:
            name, outputs = make_data(Path(folder), count, detections, classes)
            evaluators = {
                PLAIN: COCOEvaluator(name, tasks=("bbox",), output_dir=f"{folder}/{PLAIN}"),
                FAST: HotCocoEvaluator(name, output_dir=f"{folder}/{FAST}"),
            }
            runs = {variant: evaluation(evaluator, outputs) for variant, evaluator in evaluators.items()}
            what = f"{count} images x {detections} detections x {classes} classes"
            require_same(runs[FAST](), runs[PLAIN]())
            bars = {FAST: BAR} if count == max(images) else {}
            found += compare(what, runs, baseline=PLAIN, repeats=args.repeats, bars=bars, warm_up=False)
    curves = {PLAIN: [one.baseline_seconds for one in found], FAST: [one.seconds for one in found]}
    write(found, args.output, args.name, quick=args.quick, more=growth_table("images", images, curves, "s"))
    draw_growth("images", images, curves, "s", Path(args.output) / f"{args.name}_growth.png")
    return found


if __name__ == "__main__":
    with one_line_errors():
        main()
