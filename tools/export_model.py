#!/usr/bin/env python3
"""Export a trained detector to another runtime, run it there, and compare it with PyTorch."""

import argparse
import signal
import sys
import warnings
from collections.abc import Sequence

import numpy as np
from detectron2.data import DatasetCatalog

from d2x.config.arguments import config_parser, read_config
from d2x.data.images import find_images, read_image
from d2x.data.prepare import prepare_classes, prepare_data
from d2x.deploy.check import Tolerance
from d2x.deploy.export import ExportOptions, export_model
from d2x.deploy.manifest import OUTPUTS, PRECISIONS, Manifest
from d2x.deploy.runtimes import FORMATS
from d2x.errors import one_line_errors

EPILOG = """The folder --output holds the model and model.json, which says how to feed it and what its outputs mean;
tools/infer.py and d2x.deploy.load run it. It appears only when the check has passed.

examples:
  tools/export_model.py --config-file output/quickstart/config.yaml --weights output/quickstart/model_final.pth \\
      --format onnx --dynamic --output output/onnx
  tools/export_model.py --config-file ... --weights ... --format openvino --size 512 512 --precision int8 \\
      --evaluate --max-ap-loss 1 --output output/openvino_int8
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = config_parser(__doc__, EPILOG)
    parser.add_argument("--weights", required=True, help="checkpoint of the run")
    parser.add_argument("--format", required=True, choices=list(FORMATS))
    parser.add_argument("--output", required=True, metavar="DIR", help="folder to make")
    parser.add_argument("--overwrite", action="store_true", help="replace an earlier export in that folder")
    parser.add_argument(
        "--form", default="", choices=list(OUTPUTS), help="what the model gives (default: the format's best)"
    )
    parser.add_argument("--dynamic", action="store_true", help="any image size, and any batch where the format can")
    parser.add_argument(
        "--size", nargs=2, type=int, metavar=("HEIGHT", "WIDTH"), help="of a fixed input; larger images are shrunk"
    )
    parser.add_argument("--batch", type=int, default=1, help="of a fixed input (default %(default)s)")
    parser.add_argument("--precision", default="fp32", choices=PRECISIONS)
    parser.add_argument(
        "--check", nargs="+", metavar="IMAGES", help="files or folders (default: images of DATASETS.TEST)"
    )
    parser.add_argument("--check-count", type=int, default=8, help="at most so many (default %(default)s)")
    parser.add_argument("--no-check", action="store_true", help="for a runtime that cannot run on this machine")
    parser.add_argument(
        "--tolerance",
        nargs=2,
        type=float,
        metavar=("SCORE", "PIXELS"),
        help="largest differences allowed (default: 1e-4 and 0.05 for fp32, else none)",
    )
    parser.add_argument(
        "--evaluate", nargs="?", type=int, const=0, metavar="COUNT", help="AP on (COUNT images of) DATASETS.TEST, too"
    )
    parser.add_argument("--max-ap-loss", type=float, help="fail when --evaluate finds a larger loss, in points")
    parser.add_argument(
        "--calibrate", nargs="+", metavar="IMAGES", help="for int8: files or folders (default: DATASETS.TRAIN)"
    )
    parser.add_argument("--calibrate-count", type=int, default=128, help="at most so many (default %(default)s)")
    args = parser.parse_args(argv)
    if args.max_ap_loss is not None and args.evaluate is None:
        parser.error("--max-ap-loss needs --evaluate")
    if args.evaluate is not None and args.no_check:
        parser.error("--evaluate runs the model, which --no-check forbids")
    return args


def read_images(files: Sequence[str] | None, names: Sequence[str], count: int, channels: str) -> dict[str, np.ndarray]:
    """At most ``count`` images of the given files and folders, or else evenly from the first of the data sets."""
    if files is not None:
        paths = [str(path) for path in find_images(files)]
    else:
        paths = [record["file_name"] for name in names[:1] for record in DatasetCatalog.get(name)]
    step = max(1, len(paths) // max(count, 1))
    return {path: read_image(path, channels) for path in paths[::step][:count]}


def main(argv: Sequence[str] | None = None) -> Manifest:
    """Export; returns the manifest."""
    args = parse_args(argv)
    check, int8 = not args.no_check, args.precision == "int8"
    cfg = read_config(args, "MODEL.WEIGHTS", args.weights)
    needs_data = (check and args.check is None) or args.evaluate is not None or (int8 and args.calibrate is None)
    cfg = prepare_data(cfg) if needs_data else prepare_classes(cfg)
    options = ExportOptions(
        format=args.format,
        form=args.form,
        dynamic=args.dynamic,
        size=tuple(args.size) if args.size else None,
        batch=args.batch,
        precision=args.precision,
        tolerance=Tolerance(*args.tolerance) if args.tolerance else Tolerance() if args.precision == "fp32" else None,
        max_ap_loss=args.max_ap_loss,
        evaluate_images=args.evaluate,
        check=check,
    )
    channels, test, train = cfg.INPUT.FORMAT, cfg.DATASETS.TEST, cfg.DATASETS.TRAIN
    check_images = read_images(args.check, test, args.check_count, channels) if check else {}
    if check and not check_images:
        raise ValueError("no images to check with: give --check IMAGES, or set DATASETS.TEST")
    calibration = list(read_images(args.calibrate, train, args.calibrate_count, channels).values()) if int8 else []
    manifest = export_model(
        cfg, args.output, options, check_images=check_images, calibration=calibration, overwrite=args.overwrite
    )
    checked = "checked" if options.check else "NOT checked"
    what = f"{manifest.detector}, {manifest.format} {manifest.precision}, form {manifest.form}"
    print(f"{what}, {checked}: {args.output}")
    return manifest


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that what was begun is removed
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    with one_line_errors():
        main()
