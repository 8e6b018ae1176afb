#!/usr/bin/env python3
"""Parameters, FLOPs, time and memory of a detector by module and by operation, as tables and as a trace."""

import argparse
import json
from pathlib import Path

import torch
from detectron2.modeling import build_model

from d2x.atomic_files import write_text
from d2x.checkpoint.files import Checkpointer
from d2x.config.load import load_cfg
from d2x.config.plugins import add_plugin_argument
from d2x.detectors import class_count, set_class_count
from d2x.errors import one_line_errors
from d2x.report.model_profile import noise_batch, profile_model, profile_table


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="The images are noise, the weights random unless MODEL.WEIGHTS is given. Times under the profiler are\n"
        "a little longer than without. The trace opens in Perfetto (ui.perfetto.dev) or chrome://tracing.\n\n"
        "example: tools/profile_model.py --config-file projects/CenterX/configs/quickstart.yaml --size 512x512 \\\n"
        "  MODEL.DEVICE cpu",
    )
    parser.add_argument("--config-file", required=True, help="of any detector here")
    parser.add_argument("--size", default="512x512", help="HxW of the images in pixels (default %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="images (default 1)")
    parser.add_argument("--train", action="store_true", help="a training step's forward and backward, not inference")
    parser.add_argument("--depth", type=int, default=2, help="levels of modules to list (default %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads (default: torch's own choice)")
    parser.add_argument("--no-flops", action="store_true", help="skip the count of FLOPs, which needs a traced pass")
    parser.add_argument("--output", default="output/profile", help="folder of the results (default %(default)s)")
    add_plugin_argument(parser)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides, such as MODEL.DEVICE cpu")
    args = parser.parse_args(argv)
    height, times, width = args.size.partition("x")
    if not times or not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise ValueError(f"--size is written HxW, such as 800x1333, got '{args.size}'")
    if min(args.batch, args.depth) < 1 or args.threads < 0:
        raise ValueError("--batch and --depth must be at least 1, --threads at least 0")
    args.hw = (int(height), int(width))
    return args


def main(argv: list[str] | None = None) -> Path:
    """Run; returns the folder of the results."""
    args = parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    cfg = load_cfg(args.config_file, args.opts, plugins=args.plugin)
    if not class_count(cfg):
        set_class_count(cfg, len(cfg.DATASETS.CLASS_NAMES) or 80)
    model = build_model(cfg)
    if cfg.MODEL.WEIGHTS:
        Checkpointer(model).load(cfg.MODEL.WEIGHTS, checkpointables=[])
    batch = noise_batch(args.batch, args.hw, class_count(cfg))
    found = profile_model(model.train(args.train), batch, depth=args.depth, flops=not args.no_flops)
    output, table = Path(args.output), profile_table(found)
    write_text(output / "profile.md", table)
    costs = {"modules": found.modules, "backward_seconds": found.backward_seconds}
    write_text(output / "profile.json", json.dumps(costs, indent=1))
    order = "self_device_time_total" if model.device.type == "cuda" else "self_cpu_time_total"
    write_text(output / "operations.txt", found.trace.key_averages().table(sort_by=order, row_limit=40))
    found.trace.export_chrome_trace(str(output / "trace.json"))
    print(f"\n{table}\n{output}: profile.md, profile.json, operations.txt, trace.json")
    return output


if __name__ == "__main__":
    with one_line_errors():
        main()
