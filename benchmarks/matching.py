"""Matching and losses of a training step: every decoder layer in both query groups, and the proposals.

Baseline: one set of predictions after another, a host transfer each. Ours: all costs in one transfer. Forward only,
and with the backward pass to the predictions.
"""

import argparse
from collections.abc import Callable

import torch

from benchmarks.baselines.matching import PerLayerCriterion
from benchmarks.harness import Bar, Comparison, add_options, compare, prepare
from benchmarks.random_sets import random_sets
from benchmarks.report import write
from d2x.errors import one_line_errors
from plain_detr.criterion import LossWeights, SetCriterion
from plain_detr.hybrid import QueryGroups, match_tasks
from plain_detr.matcher import HungarianMatcher

PER_LAYER, TOGETHER = "one by one", "together"
REPEATS = 6
BAR = Bar(time=0.4)


def build(counts: tuple[int, ...], *, queries: int, extra: int, layers: int, classes: int, cells: int, backward: bool):
    """Both variants on the same predictions, by name."""
    torch.manual_seed(0)
    coder, sets, proposals, targets = random_sets(
        "delta", queries=queries, extra=extra, layers=layers, counts=counts, classes=classes, cells=cells
    )
    tasks = match_tasks(sets, proposals, QueryGroups(queries, extra, REPEATS))
    criterion = SetCriterion(
        matcher=HungarianMatcher(coder=coder, cost=LossWeights(box=1.0)), coder=coder, weights=LossWeights(box=1.0)
    )
    leaves = [part for one in (*sets, proposals) for part in (one.logits, one.raw)]

    def runner(scorer: Callable) -> Callable:
        def run():
            with torch.set_grad_enabled(backward):
                losses, _ = scorer(tasks, targets)
            if backward:
                torch.autograd.grad(sum(losses.values()), leaves, retain_graph=True)

        return run

    return {PER_LAYER: runner(PerLayerCriterion(criterion)), TOGETHER: runner(criterion)}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.matching",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="bar: one host transfer, time <= 0.4x",
    )
    parser.add_argument("--boxes", type=int, nargs="+", default=[12, 4], help="boxes of each image (default 12 4)")
    parser.add_argument("--queries", type=int, nargs=2, default=(300, 1500), help="of both groups (default 300 1500)")
    add_options(parser, "matching")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> list[Comparison]:
    """Run; returns the comparisons."""
    args = parse_args(argv)
    prepare(args)
    sizes = {"queries": args.queries[0], "extra": args.queries[1], "layers": 6, "classes": 80, "cells": 5440}
    if args.quick:
        sizes = {"queries": 20, "extra": 30, "layers": 2, "classes": 5, "cells": 60}
    found: list[Comparison] = []
    for backward, passes in ((False, "matching + losses"), (True, "matching + losses + backward")):
        what = f"{passes}, {len(args.boxes)} images, {sizes['queries']}+{sizes['extra']} queries"
        variants = build(tuple(args.boxes), backward=backward, **sizes)
        bars = {TOGETHER: BAR} if not backward else {}
        found += compare(what, variants, baseline=PER_LAYER, repeats=args.repeats, bars=bars)
    write(found, args.output, args.name, quick=args.quick)
    return found


if __name__ == "__main__":
    with one_line_errors():
        main()
