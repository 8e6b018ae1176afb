#!/usr/bin/env python3
"""Find everything that is wrong with a data set: a COCO json and its image folder. Changes nothing."""

import argparse
import json
import os
import sys
from pathlib import Path

from d2x.atomic_files import write_text
from d2x.data.check.dataset_check import check_set, find_leaks, make_cleaning
from d2x.data.check.dataset_report import as_json, as_text
from d2x.data.index.clean_copy import clean_members, write_members
from d2x.data.index.json_stream import read_members
from d2x.data.index.scan import LISTS
from d2x.errors import one_line

CLEAN, PROBLEMS, NOT_USABLE = 0, 1, 2

EPILOG = """examples:
  one set            tools/check_dataset.py my/train.json my/train/
  training against   tools/check_dataset.py my/train.json my/train/ --val-json my/val.json --val-images my/val/
  validation         (finds training images that are validation images too)
  a clean copy       tools/check_dataset.py my/train.json my/train/ --write-clean my/train_clean.json
  for a program      tools/check_dataset.py my/train.json my/train/ --report problems.json

An error is what training leaves out (a missing, truncated or other-sized image, a box of no size, an unknown category,
...), a warning what it keeps although it is hardly meant (a box partly outside, a repeated annotation, a training image
that is a validation image), a note what is worth knowing (crowds, images without annotations). docs/data_checks.md
lists them all.

exit status: 0 neither errors nor warnings, 1 some, 2 the data set cannot be used (or wrong arguments)
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("json", metavar="JSON", help="annotations in COCO's instances format")
    parser.add_argument("images", metavar="IMAGES", help="folder that its file names are relative to")
    parser.add_argument(
        "--val-json", metavar="JSON", help="a validation set, checked too, and against which leaks count"
    )
    parser.add_argument("--val-images", metavar="FOLDER", help="image folder of --val-json")
    parser.add_argument("--report", metavar="FILE", help="write all that was found as json")
    parser.add_argument("--write-clean", metavar="FILE", help="write a copy of JSON without errors and warnings")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes that decode images (default 1)")
    parser.add_argument(
        "--headers-only", action="store_true", help="do not decode images: quick, misses truncated ones"
    )
    parser.add_argument(
        "--near",
        type=int,
        nargs="?",
        const=4,
        metavar="BITS",
        help="also note training images that look like a validation image: of 64 bits, at most BITS differ (4)",
    )
    parser.add_argument(
        "--listed", type=int, default=1000, metavar="N", help="records of each kind in the report (default 1000)"
    )
    args = parser.parse_args(argv)
    if bool(args.val_json) != bool(args.val_images):
        parser.error("--val-json and --val-images belong together")
    if args.near is not None and not args.val_json:
        parser.error("--near needs --val-json")
    if args.jobs < 1 or args.listed < 1 or (args.near or 0) < 0:
        parser.error("--jobs and --listed must be at least 1, --near at least 0")
    outputs = [name for name in (args.report, args.write_clean) if name]
    for name in outputs:
        if _is_input(name, args):
            parser.error(f"{name} is an input; nothing is written over it")
    if len(outputs) == 2 and os.path.realpath(outputs[0]) == os.path.realpath(outputs[1]):
        parser.error("--report and --write-clean name the same file")
    return args


def _is_input(name: str, args: argparse.Namespace) -> bool:
    """Whether writing to ``name`` would change a json, or a file of an image folder that may be an image."""
    path = Path(os.path.realpath(name))
    if any(source and path == Path(os.path.realpath(source)) for source in (args.json, args.val_json)):
        return True
    folders = [Path(os.path.realpath(folder)) for folder in (args.images, args.val_images) if folder]
    return path.exists() and path.suffix != ".json" and any(folder in path.parents for folder in folders)


def main(argv: list[str] | None = None) -> int:
    """Run; returns the exit status."""
    args = parse_args(argv)
    try:
        return check(args)
    except Exception as error:
        text = one_line(error)
        if text is None:
            raise
        print(f"error: {text}", file=sys.stderr)
        return NOT_USABLE


def check(args: argparse.Namespace) -> int:
    """
    Raises:
        FileNotFoundError, ValueError: a json cannot be read, or nothing would be left in a clean copy.
    """
    options = {"jobs": args.jobs, "decode": not args.headers_only, "listed": args.listed}
    sets = [check_set(args.json, args.images, **options)]
    leaks = None
    if args.val_json:
        sets.append(check_set(args.val_json, args.val_images, **options))
        leaks = find_leaks(*sets, near=args.near)
    status = CLEAN if all(checked.clean for checked in sets) else PROBLEMS
    if not all(checked.usable for checked in sets):
        status = NOT_USABLE
    print("\n\n".join(as_text(checked) for checked in sets))
    if args.report:
        report = {"status": status, "sets": [as_json(checked) for checked in sets]}
        write_text(Path(args.report), json.dumps(report, indent=1))
        print(f"report: {args.report}")
    if args.write_clean:
        if not sets[0].usable:
            raise ValueError(f"{args.json} cannot be used, so there is no clean copy of it")
        cleaning = make_cleaning(sets[0], leaks)
        if not cleaning.keep_images.any():
            raise ValueError(f"{args.json}: no image would be left in a clean copy")
        write_members(clean_members(read_members(args.json, LISTS), cleaning), Path(args.write_clean))
        print(f"clean copy: {args.write_clean}")
    return status


if __name__ == "__main__":
    sys.exit(main())
