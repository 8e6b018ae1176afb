#!/usr/bin/env python3
"""Convert a released centerX, Plain-DETR or DINOv3-detector checkpoint to ours, or ours back to the released names."""

import argparse
import os
import pickle
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor

from centerx import checkpoint_keys as centerx_keys
from d2x.atomic_files import atomic_write
from d2x.checkpoint.files import read_checkpoint
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

# Layers that have one output for each class, by our names.
CLASS_LAYERS = {"centerx": ("head.heatmap.out.",), "plain_detr": (".class_logits.",)}
COCO_OUTPUTS = 91  # of a released COCO class head: one for each category id up to 90
EXAMPLES = 5


class Report(NamedTuple):
    """A converted state dict and what became of the names; ``notes`` say what else was changed."""

    state: dict[str, Tensor]
    renamed: dict[str, str]
    unmatched: list[str]
    dropped: list[str]
    notes: list[str]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model",
        required=True,
        choices=[*sorted(CLASS_LAYERS), "any"],
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
        help=f"plain_detr: keep class heads as they are; by default the {COCO_OUTPUTS} outputs of released ones become"
        " COCO's 80 classes, and back with --reverse",
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


def read_state(path: str, *, trust_pickle: bool = False) -> dict[str, Tensor]:
    """The tensors of a checkpoint, without the prefix of a parallel wrapper.

    Raises:
        FileNotFoundError: no such file.
        ValueError: unreadable, without tensors, or in need of ``trust_pickle``.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"checkpoint not found: {path}")
    # Released files keep the command line they were trained with, which is plain data.
    with torch.serialization.safe_globals([argparse.Namespace]):
        content = _read_trusted(path) if trust_pickle else read_checkpoint(path)
    state = content
    for key in ("model", "state_dict", "teacher"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            state = content[key]
            break
    if not isinstance(state, dict):
        raise ValueError(f"{path}: holds a {type(state).__name__}, not named tensors")
    tensors = {str(name).removeprefix("module."): value for name, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path}: no tensors in this file; it holds {', '.join(map(str, list(state)[:EXAMPLES]))}")
    return tensors


def _read_trusted(path: str) -> Any:
    if path.endswith(".safetensors"):
        return read_checkpoint(path)
    try:
        if path.endswith(".pkl"):
            with open(path, "rb") as file:
                return _as_tensors(pickle.load(file, encoding="latin1"))
        return torch.load(path, map_location="cpu", weights_only=False)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ImportError, AttributeError) as error:
        raise ValueError(f"{path}: not a readable checkpoint ({' '.join(str(error).split())[:200]})") from error


def _as_tensors(content: Any) -> Any:
    """Nested dicts with their arrays as tensors: detectron2's own ``.pkl`` files hold numpy arrays."""
    if isinstance(content, dict):
        return {str(name): _as_tensors(value) for name, value in content.items()}
    return torch.from_numpy(content) if isinstance(content, np.ndarray) and content.dtype != object else content


def convert(model: str, state: dict[str, Tensor], *, reverse: bool = False, keep_outputs: bool = False) -> Report:
    """Rename by the rules of one detector; Plain-DETR's class heads are also cut to, or spread from, COCO's classes."""
    if model == "any":
        return Report(state, {name: name for name in state}, [], [], [])
    if model == "centerx":
        converted = centerx_keys.convert(state, reverse=reverse)
        return Report(converted.state, converted.renamed, converted.unmatched, [], [])
    notes = []
    if reverse and not keep_outputs and _outputs(state) == len(plain_detr_keys.COCO_IDS):
        state = plain_detr_keys.spread_classes(state, plain_detr_keys.COCO_IDS, COCO_OUTPUTS)
        notes.append(f"class heads: {len(plain_detr_keys.COCO_IDS)} classes spread to {COCO_OUTPUTS} outputs")
    converted = plain_detr_keys.convert(state, reverse=reverse)
    ours = converted.state
    if not reverse and not keep_outputs and _outputs(ours) == COCO_OUTPUTS:
        ours = plain_detr_keys.select_classes(ours, plain_detr_keys.COCO_IDS)
        notes.append(f"class heads: COCO's {len(plain_detr_keys.COCO_IDS)} classes of {COCO_OUTPUTS} outputs kept")
    return Report(ours, converted.renamed, converted.unmatched, converted.dropped, notes)


def drop_classes(model: str, state: dict[str, Tensor]) -> Report:
    """Leave out class layers; everything else stays under its name."""
    if model not in CLASS_LAYERS:
        raise ValueError(f"--drop-classes needs to know the detector: --model {' or '.join(sorted(CLASS_LAYERS))}")
    dropped = [name for name in state if any(part in name for part in CLASS_LAYERS[model])]
    kept = {name: value for name, value in state.items() if name not in dropped}
    if not dropped:
        raise ValueError(f"no class layer ({', '.join(CLASS_LAYERS[model])}) in it: not a checkpoint of our {model}")
    return Report(kept, {}, [], dropped, [])


def write_state(state: dict[str, Tensor], path: Path) -> None:
    """Atomically, in the format that the suffix says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        if path.suffix == ".safetensors":  # which refuses two names for one storage, as released heads have
            file.write(save({name: value.clone().contiguous() for name, value in state.items()}))
        else:
            torch.save({"model": state}, file)


def print_report(report: Report, verbose: bool) -> None:
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


def _outputs(state: dict[str, Tensor]) -> int | None:
    """Outputs of the class heads of our Plain-DETR."""
    heads = (value for name, value in state.items() if name.endswith(".class_logits.bias"))
    first = next(heads, None)
    return None if first is None else len(first)


def main(argv: list[str] | None = None) -> int:
    """Run; returns the exit status."""
    args = parse_args(argv)
    output = Path(args.output)
    if output.suffix not in (".pth", ".safetensors"):
        raise ValueError(f"{output}: the output must end in .pth or .safetensors")
    if output.exists() and not args.force:
        raise ValueError(f"{output} exists: choose another name, or --force to overwrite it")
    state = read_state(args.input, trust_pickle=args.trust_pickle)
    if args.drop_classes:
        report = drop_classes(args.model, state)
    else:
        report = convert(args.model, state, reverse=args.reverse, keep_outputs=args.keep_outputs)
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
