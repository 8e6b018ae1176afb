"""Plain-DETR Swin V2-S: a training step and inference, ours against what the released program computes.

Both are one model on the same weights with the released settings (``configs/released``): they give the same losses and
detections. The baseline has the bias of every (query, pixel) pair and every logit in memory, matches set after set, and
computes all 1800 queries at inference.
"""

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from benchmarks.baselines.detector import ReleasedPlainDETR
from benchmarks.harness import Bar, Comparison, add_options, compare, prepare
from benchmarks.memory import peak_memory
from benchmarks.report import write
from d2x.config.load import load_cfg
from d2x.deploy.check import Tolerance
from d2x.deploy.export import ExportOptions, export_model
from d2x.deploy.infer import load
from d2x.detectors import get_recipe
from d2x.engine.compile_blocks import compile_blocks
from d2x.engine.optim import build_optimizer
from d2x.errors import one_line_errors
from d2x.report.model_profile import noise_batch

CONFIG = "projects/PlainDETR/configs/released/swinv2_s_mim_boxrpb_delta.yaml"
RELEASED, OURS, COMPILED = "released", "ours", "compiled"
EXPORTED = ("onnx", "openvino")
BARS = {"training": Bar(time=0.5, memory=0.45), "inference": Bar(time=0.4)}
QUICK = [
    "MODEL.SWIN_V2.EMBED_DIM", "24", "MODEL.SWIN_V2.DEPTHS", "(1, 1, 2, 2)", "MODEL.SWIN_V2.WINDOW_SIZE", "4",
    "MODEL.PLAIN_DETR.HIDDEN_DIM", "64", "MODEL.PLAIN_DETR.DECODER_LAYERS", "2",
    "MODEL.PLAIN_DETR.NUM_QUERIES", "10", "MODEL.PLAIN_DETR.ONE_TO_MANY.QUERIES", "20",
]  # fmt: skip


def config(config_file: str, quick: bool, words: list[str]) -> CfgNode:
    """The released settings on the CPU, with COCO's 80 classes."""
    fixed = ["MODEL.DEVICE", "cpu", "MODEL.PLAIN_DETR.NUM_CLASSES", "80", "MODEL.BACKBONE.WEIGHTS", ""]
    names = ["DATASETS.CLASS_NAMES", str([f"class {index}" for index in range(80)])]
    return load_cfg(config_file, [*fixed, *names, *(QUICK if quick else []), *words])


def build(variant: str, task: str, hw: tuple[int, int], cfg: CfgNode) -> Callable:
    """A training step or a detection of one variant as something to run."""
    if variant in EXPORTED:
        return _exported(variant, hw, cfg)
    torch.manual_seed(0)
    model = ReleasedPlainDETR(cfg) if variant == RELEASED else build_model(cfg)
    model.train(task == "training")
    if variant == COMPILED:
        compile_blocks(model)
    batch = noise_batch(1, hw, num_classes=80)
    if task == "inference":
        return partial(_detect, model, batch)
    optimizer = build_optimizer(cfg, get_recipe("PlainDETR").param_groups(cfg, model))
    return partial(_step, model, optimizer, batch)


def _detect(model, batch: list[dict]) -> None:
    with torch.no_grad():
        model(batch)


def _exported(form: str, hw: tuple[int, int], cfg: CfgNode) -> Callable:
    """A detection by an exported model, from the same pixels to boxes; exporting checks it against PyTorch."""
    torch.manual_seed(0)
    model, cfg = build_model(cfg), cfg.clone()
    pixels = noise_batch(1, hw, num_classes=80)[0]["image"].permute(1, 2, 0).contiguous().numpy()
    with tempfile.TemporaryDirectory() as folder:
        cfg.MODEL.WEIGHTS = str(Path(folder) / "model.pth")
        torch.save({"model": model.state_dict()}, cfg.MODEL.WEIGHTS)
        options = ExportOptions(format=form, size=hw, tolerance=Tolerance())
        export_model(cfg, Path(folder) / form, options, check_images={"noise": pixels})
        detector = load(Path(folder) / form, threads=torch.get_num_threads())
    return partial(detector, pixels)


def _step(model, optimizer, batch: list[dict]) -> None:
    optimizer.zero_grad()
    sum(model(batch).values()).backward()
    optimizer.step()


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.plain_detr_step",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="bars: training step <= 0.5x time, <= 0.45x peak memory; inference <= 0.4x time eager, less compiled",
    )
    parser.add_argument("--config-file", default=CONFIG, help="default %(default)s")
    parser.add_argument("--tasks", nargs="+", choices=list(BARS), default=list(BARS), help="default: both")
    parser.add_argument(
        "--sizes", nargs="+", default=["512x512", "800x1333"], help="HxW of the inference (default 512x512 800x1333)"
    )
    parser.add_argument("--train-size", default="512x512", help="HxW of the training image (default %(default)s)")
    parser.add_argument("--compiled", action="store_true", help="torch.compile at inference, too (minutes to start)")
    parser.add_argument(
        "--exported",
        nargs="+",
        choices=EXPORTED,
        default=[],
        help="exported forms at inference, too (minutes to start)",
    )
    parser.add_argument("--no-memory", action="store_true", help="leave out the peak memory of the step")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY VALUE", help="config overrides")
    add_options(parser, "plain_detr_step")
    return parser.parse_args(argv)


def _hw(text: str) -> tuple[int, int]:
    height, times, width = text.partition("x")
    if not times or not (height.isdigit() and width.isdigit()):
        raise ValueError(f"a size is written HxW, such as 800x1333, got '{text}'")
    return int(height), int(width)


def main(argv: list[str] | None = None) -> list[Comparison]:
    """Run; returns the comparisons."""
    args = parse_args(argv)
    prepare(args)
    if not Path(args.config_file).is_file():
        raise FileNotFoundError(f"config file not found: {args.config_file} (run from the project's folder)")
    cfg = config(args.config_file, args.quick, args.set)
    jobs = [("training", _hw(args.train_size))] if "training" in args.tasks else []
    jobs += [("inference", _hw(size)) for size in args.sizes] if "inference" in args.tasks else []
    if args.quick:
        jobs = [(task, (64, 96)) for task in dict.fromkeys(task for task, _ in jobs)]
    queries = f"{cfg.MODEL.PLAIN_DETR.NUM_QUERIES}+{cfg.MODEL.PLAIN_DETR.ONE_TO_MANY.QUERIES} queries"
    found: list[Comparison] = []
    for task, hw in jobs:
        names = [RELEASED, OURS]
        if task == "inference":
            names += [COMPILED] * args.compiled + args.exported
        peaks = {}
        if task == "training" and not (args.no_memory or args.quick):
            peaks = {name: peak_memory(build, name, task, hw, cfg) for name in (RELEASED, OURS)}
        variants = {name: build(name, task, hw, cfg) for name in names}
        what = f"{task}, {hw[0]}x{hw[1]}, {queries}"
        bars = {name: BARS[task] for name in names[1:]}
        found += compare(what, variants, baseline=RELEASED, repeats=args.repeats, bars=bars, memory=peaks)
    write(found, args.output, args.name, quick=args.quick)
    return found


if __name__ == "__main__":
    with one_line_errors():
        main()
