#!/usr/bin/env python3
"""Feed malformed jsons, images, configs and checkpoints to the program; each must be skipped or refused clearly."""

import argparse
import collections
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.malformed import checkpoints, configs, images, jsons, lists  # noqa: E402
from benchmarks.malformed.cases import Outcome, run_case  # noqa: E402
from d2x.atomic_files import write_text  # noqa: E402

KINDS = {
    "json": jsons.make,
    "list": lists.make,
    "image": images.make,
    "config": configs.make,
    "checkpoint": checkpoints.make,
}

EPILOG = """A case fails if it ends in any other exception than ValueError or OSError (what the tools turn into one
"error: ..." line), in one whose message does not name the file, in more than 10 s of processor time, in code of the
input having run, in a changed input file, or if what training, evaluation and tools/check_dataset.py say about the
same data contradicts each other. A case is made from its kind and number alone: `--kind json --first 17 --cases 1`
repeats one.
"""


def outcomes(kind: str, numbers: range, folder: Path) -> Iterator[Outcome]:
    """Run the cases of a kind; the caches they write lie in ``folder``."""
    before = os.environ.get("D2X_CACHE")
    os.environ["D2X_CACHE"] = str(folder / "cache")
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for number in numbers:
                yield run_case(kind, KINDS[kind], number, folder)
    finally:
        logging.disable(logging.NOTSET)
        os.environ.pop("D2X_CACHE")
        if before is not None:
            os.environ["D2X_CACHE"] = before


def table(found: list[Outcome]) -> str:
    """Markdown: per kind of input and damage, how many cases ended how."""
    counts = collections.Counter((one.kind, one.what, one.ended) for one in found)
    lines = [
        "| input | damage | cases | taken as they are | bad parts skipped | refused | failed |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind, what in sorted({(one.kind, one.what) for one in found}):
        row = [counts[kind, what, ended] for ended in ("accepted", "skipped", "refused", "FAILED")]
        lines.append(f"| {kind} | {what} | {sum(row)} | {' | '.join(map(str, row))} |")
    row = [sum(one.ended == ended for one in found) for ended in ("accepted", "skipped", "refused", "FAILED")]
    return "\n".join([*lines, f"| all | | {sum(row)} | {' | '.join(map(str, row))} |"])


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", type=int, default=1000, help="of each kind (default %(default)s)")
    parser.add_argument("--first", type=int, default=0, metavar="NUMBER", help="number of the first (default 0)")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this kind; may be repeated")
    parser.add_argument("--show", type=int, default=3, help="failures to print of each kind (default %(default)s)")
    parser.add_argument("--table", metavar="FILE", help="write the counts as markdown")
    args = parser.parse_args(argv)
    found: list[Outcome] = []
    for kind in args.kind or KINDS:
        with tempfile.TemporaryDirectory() as folder:
            numbers = range(args.first, args.first + args.cases)
            found += tqdm(outcomes(kind, numbers, Path(folder)), total=args.cases, desc=kind, unit="case")
    failed = collections.defaultdict(list)
    for one in found:
        if one.ended == "FAILED":
            failed[one.kind].append(one)
    for kind, ones in failed.items():
        for one in ones[: args.show]:
            print(f"--- {kind} {one.seed} ({one.what})\n{one.detail}")
    print(table(found))
    if args.table:
        write_text(Path(args.table), table(found) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
