"""CenterX on ResNet-18, one 512 x 512 image: the eager model against its faster forms.

Folded: batch norms folded into the convolutions, maps in channels-last order. Compiled: that, through torch.compile.
The exported forms run through ``d2x.deploy`` in their runtimes, checked against PyTorch while exporting. From pixels to
boxes in every case.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from benchmarks.harness import Bar, Comparison, add_options, compare, prepare
from benchmarks.report import write
from d2x.config.load import load_cfg
from d2x.deploy.check import Tolerance
from d2x.deploy.export import ExportOptions, export_model
from d2x.deploy.infer import load
from d2x.errors import one_line_errors
from d2x.inference.fold import fold_for_inference

CONFIG = "projects/CenterX/configs/centernet_R_18_70ep.yaml"
EAGER, FOLDED, COMPILED = "eager", "folded", "compiled"
# Name -> (format, precision of the runtime).
EXPORTED = {
    "onnx": ("onnx", "fp32"),
    "openvino": ("openvino", "fp32"),
    "openvino-fast": ("openvino", "fp16"),
    "ncnn": ("ncnn", "fp32"),
}
BAR = Bar(time=0.4)


def config(config_file: str, words: list[str]) -> CfgNode:
    """The model with plain convolutions in its neck, which every runtime has, on the CPU, without trained weights."""
    fixed = ["MODEL.DEVICE", "cpu", "MODEL.CENTERNET.NUM_CLASSES", "80", "MODEL.BACKBONE.WEIGHTS", ""]
    names = ["DATASETS.CLASS_NAMES", str([f"class {index}" for index in range(80)])]
    return load_cfg(config_file, [*fixed, *names, "MODEL.CENTERNET.NECK.CONV", "plain", *words])


def build(cfg: CfgNode, hw: tuple[int, int], names: list[str], folder: Path, threads: int) -> dict[str, Callable]:
    """Every wanted form of one model on one image, by name."""
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    image = np.random.default_rng(0).integers(0, 256, (*hw, 3), dtype=np.uint8)
    pixels = torch.from_numpy(image.transpose(2, 0, 1).copy())
    cfg = cfg.clone()
    cfg.MODEL.WEIGHTS = str(folder / "model.pth")
    torch.save({"model": model.state_dict()}, cfg.MODEL.WEIGHTS)

    def eager(one) -> Callable:
        def run():
            with torch.no_grad():
                return one([{"image": pixels}])

        return run

    variants = {EAGER: eager(model)}
    if FOLDED in names:
        variants[FOLDED] = eager(fold_for_inference(model, hw))
    if COMPILED in names:
        compiled = fold_for_inference(model, hw)
        compiled.backbone.compile()
        compiled.head.compile()
        variants[COMPILED] = eager(compiled)
    for name in names:
        if name in EXPORTED:
            form, precision = EXPORTED[name]
            if not (folder / form).exists():
                options = ExportOptions(format=form, size=hw, tolerance=Tolerance())
                export_model(cfg, folder / form, options, check_images={"noise": image})
            detector = load(folder / form, threads=threads, precision=precision)
            variants[name] = lambda detector=detector: detector(image)
    return variants


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    choices = [FOLDED, COMPILED, *EXPORTED]
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.centerx_inference",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="bar: time <= 0.4x of eager for the best compiled or exported form",
    )
    parser.add_argument("--config-file", default=CONFIG, help="default %(default)s")
    parser.add_argument("--size", type=int, nargs=2, default=(512, 512), help="of the image (default 512 512)")
    parser.add_argument("--forms", nargs="+", choices=choices, default=choices, help="default: all")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY VALUE", help="config overrides")
    add_options(parser, "centerx_inference")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> list[Comparison]:
    """Run; returns the comparisons."""
    args = parse_args(argv)
    prepare(args)
    if not Path(args.config_file).is_file():
        raise FileNotFoundError(f"config file not found: {args.config_file} (run from the project's folder)")
    size, forms = tuple(args.size), args.forms
    if args.quick:
        size, forms = (64, 96), [name for name in forms if name in (FOLDED, "onnx")]
    with tempfile.TemporaryDirectory() as folder:
        cfg = config(args.config_file, args.set)
        variants = build(cfg, size, forms, Path(folder), torch.get_num_threads())
        what = f"CenterX inference, {size[0]}x{size[1]}"
        bars = dict.fromkeys(forms, BAR)
        found = compare(what, variants, baseline=EAGER, repeats=args.repeats, bars=bars)
    write(found, args.output, args.name, quick=args.quick)
    return found


if __name__ == "__main__":
    with one_line_errors():
        main()
