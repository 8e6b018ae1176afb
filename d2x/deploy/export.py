"""Export: from a config with its checkpoint to a folder with a verified model, whole or not at all."""

import copy
import dataclasses
import hashlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode

from d2x.atomic_files import atomic_folder
from d2x.deploy.check import Tolerance
from d2x.deploy.exporters import Exporter, get_exporter
from d2x.deploy.graph import DetectionGraph, ExportRequest
from d2x.deploy.infer import Detector, load
from d2x.deploy.manifest import FILE_NAME, OUTPUTS, Manifest
from d2x.deploy.verify import Reference, check, measure_ap
from d2x.detectors import get_deployment
from d2x.inference.fold import fold_batch_norms
from d2x.inference.predictor import Predictor

INPUTS = {
    "images": {
        "dtype": "float32",
        "shape": "(N, 3, H, W)",
        "meaning": "0-255, the image in the top left corner, the channel means elsewhere",
    },
    "sizes": {"dtype": "int64", "shape": "(N, 2)", "meaning": "(height, width) of each image without padding"},
}


class ExportOptions(NamedTuple):
    """What to export.

    Attributes:
        format: a key of ``d2x.deploy.runtimes.FORMATS``.
        form: a key of ``OUTPUTS``; empty for the format's best.
        dynamic: any size and batch; else ``size`` is needed, unless the recipe resizes to one size.
        size: (height, width) px of the input, rounded up to the network's divisibility.
        batch: of a fixed input.
        precision: "fp32", "fp16" or "int8".
        tolerance: of the check; None reports the differences only.
        max_ap_loss: with ``evaluate_images``: AP points that may be lost; None reports only.
        evaluate_images: images of ``DATASETS.TEST`` for AP; 0 for all, None for no evaluation.
        check: whether to run the model; False where its runtime cannot.
    """

    format: str
    form: str = ""
    dynamic: bool = False
    size: tuple[int, int] | None = None
    batch: int = 1
    precision: str = "fp32"
    tolerance: Tolerance | None = Tolerance()
    max_ap_loss: float | None = None
    evaluate_images: int | None = None
    check: bool = True


def export_model(
    cfg: CfgNode,
    output: str | Path,
    options: ExportOptions,
    *,
    check_images: dict[str, np.ndarray] | None = None,
    calibration: Sequence[np.ndarray] = (),
    overwrite: bool = False,
) -> Manifest:
    """Export the detector of a config, compare it with PyTorch in its runtime, and put it in its place.

    Everything is written to a temporary folder beside ``output`` and renamed at the end; a failure leaves nothing.

    Args:
        cfg: with ``MODEL.WEIGHTS``.
        output: the folder to make.
        options: see there.
        check_images: by name, (H, W, 3) uint8 in the order of ``INPUT.FORMAT``.
        calibration: images of the same kind, for "int8".
        overwrite: replace an earlier export.

    Raises:
        ValueError: an impossible combination of options, a model that cannot be exported, or differences over the
            tolerance.
    """
    output = Path(output)
    _check_place(output, overwrite)
    exporter = get_exporter(options.format)
    deployment = get_deployment(cfg.MODEL.META_ARCHITECTURE)
    form = _choose_form(options, exporter.FORMS, deployment.FORMS, cfg.MODEL.META_ARCHITECTURE)
    _check_options(options, exporter, calibration)
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "cpu"
    predictor = Predictor(cfg)
    graph = deployment.build_graph(copy.deepcopy(predictor.model), form).eval()
    manifest = _describe(cfg, graph, deployment.test_resize(cfg), exporter, options)
    example = graph.example(manifest.size or _example_size(graph), manifest.batch or 2)
    with torch.no_grad():
        fold_batch_norms(graph, lambda: graph.raw(*example))
    feeder = Detector(manifest, runtime=dict)
    feeds = [feeder.feeds([feeder.prepare(image)]) for image in calibration]

    with atomic_folder(output, replace=True) as folder:
        exporter.export(graph, folder, ExportRequest(example, options.dynamic, options.precision, feeds))
        manifest.write(folder)
        measured: dict[str, Any] = {}
        if options.check:
            reference = Reference(predictor, deployment.build_graph(predictor.model, form).eval(), manifest)
            detector = load(folder)
            measured["check"] = check(detector, reference, check_images or {}, options.tolerance)._asdict()
            if options.evaluate_images is not None:
                limits = {"limit": options.evaluate_images, "max_loss": options.max_ap_loss}
                measured["AP"] = measure_ap(detector, reference, cfg, **limits)
        manifest = dataclasses.replace(manifest, versions=_versions(exporter.PACKAGES), measured=measured)
        manifest.write(folder)
    return manifest


def _check_place(output: Path, overwrite: bool) -> None:
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise ValueError(f"{output} exists already: choose another folder, or overwrite it")
    if not (output / FILE_NAME).is_file():
        raise ValueError(f"{output} is not the folder of an exported model, so it is not overwritten")


def _choose_form(options: ExportOptions, of_format: Sequence[str], of_detector: Sequence[str], detector: str) -> str:
    possible = [form for form in of_format if form in of_detector]
    if not possible:
        raise ValueError(
            f"format {options.format} cannot hold {detector}: it takes {' or '.join(of_format)},"
            f" and {detector} gives {' or '.join(of_detector)}"
        )
    if options.form and options.form not in possible:
        raise ValueError(f"form {options.form}: {detector} in format {options.format} has {' or '.join(possible)}")
    return options.form or possible[0]


def _check_options(options: ExportOptions, exporter: Exporter, calibration: Sequence[np.ndarray]) -> None:
    if options.precision not in exporter.PRECISIONS:
        raise ValueError(f"precision {options.precision}: {options.format} takes {' or '.join(exporter.PRECISIONS)}")
    if options.dynamic and not exporter.DYNAMIC:
        raise ValueError(f"format {options.format} needs a fixed size: give one instead of --dynamic")
    if options.dynamic and options.size:
        raise ValueError("a dynamic model takes every size: give --size or --dynamic, not both")
    if options.precision == "int8" and not len(calibration):
        raise ValueError("precision int8 needs calibration images")


def _describe(
    cfg: CfgNode, graph: DetectionGraph, resize: dict[str, Any], exporter: Exporter, options: ExportOptions
) -> Manifest:
    if options.dynamic and graph.square:
        raise ValueError(f"the backbone takes {graph.square} x {graph.square} pixels only: leave out --dynamic")
    return Manifest(
        **dataclasses.asdict(graph.facts),
        format=options.format,
        file=exporter.FILE,
        detector=cfg.MODEL.META_ARCHITECTURE,
        form=graph.form,
        precision=options.precision,
        classes=list(cfg.DATASETS.CLASS_NAMES),
        channels=cfg.INPUT.FORMAT,
        resize=resize,
        size=None if options.dynamic else _input_size(graph, resize, options.size),
        batch=None if options.dynamic and "batch" in exporter.DYNAMIC else options.batch,
        inputs={name: INPUTS[name] for name in graph.input_names},
        outputs={name: OUTPUTS[graph.form][name] for name in graph.output_names},
        source={
            "checkpoint": os.path.basename(cfg.MODEL.WEIGHTS),
            "sha256": hashlib.sha256(Path(cfg.MODEL.WEIGHTS).read_bytes()).hexdigest(),
        },
    )


def _input_size(graph: DetectionGraph, resize: dict[str, Any], wanted: tuple[int, int] | None) -> tuple[int, int]:
    if graph.square:
        if wanted and tuple(wanted) != (graph.square, graph.square):
            raise ValueError(f"the backbone takes {graph.square} x {graph.square} pixels only")
        return graph.square, graph.square
    if wanted is None and resize["kind"] not in ("fixed", "fit"):
        raise ValueError("the config's test-time resize gives images of many sizes: give --size, or --dynamic")
    multiple = graph.facts.divisibility
    height, width = (-(-side // multiple) * multiple for side in wanted or resize["size"])
    return height, width


def _example_size(graph: DetectionGraph) -> tuple[int, int]:
    """Of no special value, so that the trace does not take one for a constant."""
    unit = -(-32 // graph.facts.divisibility) * graph.facts.divisibility
    least = max(3 * unit, graph.facts.smallest)
    return least, least + unit


def _versions(modules: Sequence[str]) -> dict[str, str]:
    """Of numpy and those of the modules that this process has loaded, which the others took no part in."""
    return {name: str(sys.modules[name].__version__) for name in ("numpy", *modules) if name in sys.modules}
