"""CenterX's claims in miniature: distillation, several teachers, the adaptive loss, each against what it replaces.

Run from the project's folder. Finished runs are kept, unfinished ones go on from their last checkpoint.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.claims.runner import Claims
from benchmarks.claims.runs import all_runs
from benchmarks.claims.scale import SCALES
from benchmarks.claims.table import draw, write_table
from d2x.errors import one_line_errors


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.claims", description=__doc__)
    parser.add_argument("--scale", choices=SCALES, default="cpu")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", nargs="+", metavar="RUN", help="only these and what they need; default: all")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time")
    parser.add_argument("--output", default="output/claims")
    parser.add_argument("--table-only", action="store_true", help="write the table of what is done")
    parser.add_argument("--one", metavar="RUN", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    known = list(all_runs(SCALES[args.scale]))
    unknown = [name for name in args.runs or [] if name not in known]
    if unknown:
        parser.error(f"unknown runs {', '.join(unknown)}; known: {', '.join(known)}")
    return args


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is missing, then write the table and the picture."""
    args = parse_args(argv)
    claims = Claims(Path(args.output), args.scale, args.jobs)
    if args.one:
        claims.run_one(args.one, args.seeds[0])
        return
    names = args.runs or list(claims.runs)
    if not args.table_only:
        claims.run_all(names, args.seeds)
    table = write_table(claims, args.seeds, list(claims.runs))
    draw(claims, args.seeds, table.with_suffix(".png"))
    print(f"{table.read_text()}\n{table}, {table.with_suffix('.png')}")


if __name__ == "__main__":
    with one_line_errors():
        main()
