"""CenterX's training targets: the whole batch at once against a Python loop over images and objects.

Ours hold the few cells of the heatmap that are not 0, the loop's all cells. So the targets are timed together with the
heatmap's loss and gradient as well, where the work that was put off would show.
"""

import argparse
from functools import partial

import torch

from benchmarks.baselines.targets import dense_focal_loss, loop_targets
from benchmarks.harness import Bar, Comparison, add_options, compare, prepare
from benchmarks.report import write
from centerx.heatmap_losses import heatmap_focal_loss
from centerx.targets import make_targets
from d2x.errors import one_line_errors

LOOP, BATCH = "loop", "batch"
BAR = Bar(time=0.1)
STRIDE, CLASSES = 4, 80


def build(images: int, objects: int, side: int, with_loss: bool = False) -> dict:
    """Both variants on the same boxes, by name.

    Args:
        with_loss: the focal loss of the heatmap, forward and backward, too.
    """
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
    variants = {
        LOOP: lambda: loop_targets(boxes, classes, **settings, slots=objects),
        BATCH: lambda: make_targets(boxes, classes, **settings),
    }
    if not with_loss:
        return variants
    logits = torch.randn(images, CLASSES, *settings["grid_hw"], generator=generator).sub_(2).requires_grad_()
    losses = {LOOP: dense_focal_loss, BATCH: heatmap_focal_loss}

    def run(name: str) -> None:
        logits.grad = None
        losses[name](logits, variants[name]().heatmap).backward()

    return {name: partial(run, name) for name in variants}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.centerx_targets",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="bar: time <= 0.1x of the loop, for the targets",
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
    both = build(images, objects, side, with_loss=True)
    found += compare(f"{what}, and the heatmap's loss and gradient", both, baseline=LOOP, repeats=args.repeats)
    write(found, args.output, args.name, quick=args.quick)
    return found


if __name__ == "__main__":
    with one_line_errors():
        main()
