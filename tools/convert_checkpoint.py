#!/usr/bin/env python3
"""Convert a released centerX, Plain-DETR or DINOv3-detector checkpoint to ours, or ours back to the released names."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from centerx import checkpoint_keys as centerx_keys
from d2x.checkpoint.conversion import Conversion, ReleasedNames, drop_layers, read_state, write_state
from d2x.errors import one_line_errors
from plain_detr import checkpoint_keys as plain_detr_keys

EPILOG = """examples:
  released centerX          tools/convert_checkpoint.py --model centerx centerX.pth ours.pth
  released Plain-DETR       tools/convert_checkpoint.py --model plain_detr swinv2_small_mim_pt_boxrpe.pth ours.pth
  back                      tools/convert_checkpoint.py --model plain_detr --reverse ours.pth official.pth
  other classes next        tools/convert_checkpoint.py --model plain_detr --drop-classes model_final.pth no_classes.pth
  another format            tools/convert_checkpoint.py --model any model_final.pth model_final.safetensors
  a pickle you trust        tools/convert_checkpoint.py --model any --trust-pickle R-50.pkl R-50.pth

OUTPUT is {"model": tensors}, or only the tensors if its name ends in .safetensors. Exit status 1, and no output, if a
name is not known and --allow-unmatched is not given.
"""

DETECTORS: dict[str, ReleasedNames] = {"centerx": centerx_keys, "plain_detr": plain_detr_keys}
EXAMPLES = 5


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        required=True,
        choices=[*DETECTORS, "any"],
        help="which detector's names; any: every name stays as it is",
    )
    parser.add_argument("input", help=".pth, .pt, .bin or .safetensors; with --trust-pickle also .pkl")
    parser.add_argument("output", help=".pth or .safetensors")
    direction = parser.add_mutually_exclusive_group()
    direction.add_argument("--reverse", action="store_true", help="from our names to the released ones")
    direction.add_argument(
        "--drop-classes",
        action="store_true",
        help="leave out the layers that depend on the classes, for training on others; INPUT has our names and keeps"
        " them",
    )
    parser.add_argument(
        "--keep-outputs",
        action="store_true",
        help=f"plain_detr: keep class heads as they are; by default the {plain_detr_keys.COCO_OUTPUTS} outputs of"
        " released ones become COCO's 80 classes, and back with --reverse",
    )
    parser.add_argument("--allow-unmatched", action="store_true", help="write OUTPUT without the names no rule knows")
    parser.add_argument("--verbose", action="store_true", help="list every renamed tensor")
    parser.add_argument("--force", action="store_true", help="overwrite OUTPUT")
    parser.add_argument(
        "--trust-pickle",
        action="store_true",
        help="read a .pth that holds more than tensors and plain values. This runs whatever code is in it: only for"
        " files of a source you trust",
    )
    return parser.parse_args(argv)


def convert(
    model: str,
    state: dict[str, Tensor],
    *,
    reverse: bool = False,
    keep_outputs: bool = False,
    without_classes: bool = False,
) -> Conversion:
    """By the names of one detector, or "any": rename everything, or leave out its class layers."""
    if model in DETECTORS:
        names = DETECTORS[model]
        if without_classes:
            return drop_layers(state, names.CLASS_LAYERS)
        return names.convert(state, reverse=reverse, keep_outputs=keep_outputs)
    if without_classes:
        raise ValueError(f"--drop-classes needs to know the detector: --model {' or '.join(DETECTORS)}")
    return Conversion(state, {name: name for name in state})


def print_report(report: Conversion, verbose: bool) -> None:
    changed = {old: new for old, new in report.renamed.items() if old != new}
    print(f"{len(report.state)} tensors: {len(changed)} renamed, {len(report.renamed) - len(changed)} of the same name")
    for old, new in list(changed.items())[: None if verbose else EXAMPLES]:
        print(f"  {old} -> {new}")
    if not verbose and len(changed) > EXAMPLES:
        print("  ... (all with --verbose)")
    for note in report.notes:
        print(note)
    if report.dropped:
        print(f"{len(report.dropped)} left out, without a counterpart: {_some(report.dropped, verbose)}")
    print(f"{len(report.unmatched)} unmatched{':' if report.unmatched else ''}")
    for name in report.unmatched:
        print(f"  {name}")


def _some(names: Sequence[str], verbose: bool) -> str:
    return ", ".join(names if verbose else names[:EXAMPLES]) + (
        ", ..." if len(names) > EXAMPLES and not verbose else ""
    )


def main(argv: list[str] | None = None) -> int:
    """Run; returns the exit status."""
    args = parse_args(argv)
    output = Path(args.output)
    if output.suffix not in (".pth", ".safetensors"):
        raise ValueError(f"{output}: the output must end in .pth or .safetensors")
    if output.exists() and not args.force:
        raise ValueError(f"{output} exists: choose another name, or --force to overwrite it")
    state = read_state(args.input, trust_pickle=args.trust_pickle)
    report = convert(
        args.model,
        state,
        reverse=args.reverse,
        keep_outputs=args.keep_outputs,
        without_classes=args.drop_classes,
    )
    print_report(report, args.verbose)
    if not report.state:
        names = "ours" if args.reverse else "a released checkpoint's"
        raise ValueError(f"{args.input}: no name in it is {names} for --model {args.model}, e.g. {next(iter(state))}")
    if report.unmatched and not args.allow_unmatched:
        print(
            f"error: {len(report.unmatched)} unmatched names, nothing written; --allow-unmatched leaves them out",
            file=sys.stderr,
        )
        return 1
    write_state(report.state, output)
    print(f"written: {output}")
    return 0


if __name__ == "__main__":
    with one_line_errors():
        sys.exit(main())
