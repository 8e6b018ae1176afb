#!/usr/bin/env python3
"""CenterX's training targets: the whole batch at once against a Python loop over images and objects."""

import argparse

import torch

from benchmarks.baselines.targets import loop_targets
from benchmarks.harness import Bar, Comparison, add_options, compare, prepare
from benchmarks.report import write
from centerx.targets import make_targets
from d2x.engine.errors import one_line_errors

LOOP, BATCH = "loop", "batch"
BAR = Bar(time=0.1)
STRIDE, CLASSES = 4, 80


def build(images: int, objects: int, side: int) -> dict:
    """Both variants on the same boxes, by name."""
    generator = torch.Generator().manual_seed(0)
    boxes, classes = [], []
    for _ in range(images):
        # Sides between 8 pixels and a third of the image, small ones more often, as in COCO.
        size = 8 * (side / 24) ** torch.rand(objects, 2, generator=generator)
        corner = torch.rand(objects, 2, generator=generator) * (side - size)
        boxes.append(torch.cat([corner, corner + size], dim=1))
        classes.append(torch.randint(0, CLASSES, (objects,), generator=generator))
    settings = {
        "num_classes": CLASSES,
        "stride": STRIDE,
        "grid_hw": (side // STRIDE, side // STRIDE),
        "min_overlap": 0.3,
    }
    return {
        LOOP: lambda: loop_targets(boxes, classes, **settings, slots=objects),
        BATCH: lambda: make_targets(boxes, classes, **settings),
    }


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.centerx_targets", description=__doc__, epilog="bar: time <= 0.1x of the loop"
    )
    parser.add_argument("--images", type=int, default=16, help="in the batch (default %(default)s)")
    parser.add_argument("--objects", type=int, default=100, help="in each image (default %(default)s)")
    parser.add_argument("--side", type=int, default=512, help="of the images in pixels (default %(default)s)")
    add_options(parser, "centerx_targets")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> list[Comparison]:
    """Run; returns the comparisons."""
    args = parse_args(argv)
    prepare(args)
    images, objects, side = (2, 8, 96) if args.quick else (args.images, args.objects, args.side)
    what = f"targets, {objects} objects x {images} images of {side}"
    found = compare(what, build(images, objects, side), baseline=LOOP, repeats=args.repeats, bars={BATCH: BAR})
    write(found, args.output, args.name, quick=args.quick)
    return found


if __name__ == "__main__":
    with one_line_errors():
        main()
