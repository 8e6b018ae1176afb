#!/usr/bin/env python3
"""Label what a data set is not labelled for: a teacher's detections, merged with the true boxes, as one COCO json."""

import argparse
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2x.config.load import load_cfg
from d2x.config.plugins import add_plugin_argument, load_plugins
from d2x.data.prepare import prepare_classes
from d2x.data.sets.builtin import register_builtin
from d2x.data.sets.merged import register_merged
from d2x.data.sets.shapes import register_shapes
from d2x.data.sets.sources import register_source
from d2x.errors import one_line_errors
from d2x.inference.pseudo_labels import Progress, Teachers, label_images, write_coco

EPILOG = """Each image keeps the boxes of the classes that its source is labelled for, and gets the detections of
the other classes that score at least the class' threshold ("score" in the json; true boxes have none). A run that
was interrupted goes on where it stopped when it is started again with the same arguments.

example:
  tools/make_pseudo_labels.py --data a.json a/ --data b.json b/ \\
      --teacher output/teacher_a/config.yaml output/teacher_a/model_final.pth \\
      --teacher output/teacher_b/config.yaml output/teacher_b/model_final.pth \\
      --threshold 0.4 --threshold face=0.3 --output output/pseudo.json
"""


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs=2, action="append", default=[], metavar=("JSON", "FOLDER"))
    parser.add_argument("--images", action="append", default=[], metavar="FOLDER", help="images without labels")
    parser.add_argument("--dataset", action="append", default=[], metavar="NAME", help="a registered data set")
    parser.add_argument("--teacher", nargs=2, action="append", required=True, metavar=("CONFIG", "WEIGHTS"))
    parser.add_argument("--classes", nargs="+", help="default: those of the data, then those of the teachers")
    parser.add_argument(
        "--threshold", action="append", default=[], metavar="[CLASS=]SCORE", help="least score (default 0.4)"
    )
    add_plugin_argument(parser)
    parser.add_argument("--output", required=True, metavar="JSON")
    parser.add_argument("--image-root", help="file names are relative to it; default: the images' common folder")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(argv)


def read_thresholds(given: Sequence[str], classes: Sequence[str]) -> dict[str, float]:
    """Least score by class name.

    Raises:
        ValueError: not a number in [0, 1], or an unknown class.
    """
    least = dict.fromkeys(classes, 0.4)
    for text in sorted(given, key=lambda text: "=" in text):  # the general one first, whatever the order
        name, _, value = text.rpartition("=")
        try:
            score = float(value)
        except ValueError:
            score = -1.0
        if not 0 <= score <= 1:
            raise ValueError(f"--threshold {text}: must be SCORE or CLASS=SCORE with a score from 0 to 1")
        if name and name not in least:
            raise ValueError(f"--threshold {text}: the classes are {', '.join(classes)}")
        least.update({name: score} if name else dict.fromkeys(classes, score))
    return least


def teacher_configs(pairs: Sequence[tuple[str, str]], device: str) -> list[CfgNode]:
    """Each teacher's config with its weights and its class names in it."""
    configs = []
    for config, weights in pairs:
        cfg = prepare_classes(load_cfg(config, ["MODEL.WEIGHTS", weights, "MODEL.DEVICE", device]))
        if not os.path.isfile(weights):
            raise FileNotFoundError(f"weights of teacher {config} not found: {weights}")
        configs.append(cfg)
    return configs


def main(argv: Sequence[str] | None = None) -> Path:
    """Returns the json's path."""
    args = parse_args(argv)
    load_plugins(args.plugin)
    register_builtin()
    register_shapes()
    names = [register_source(source) for source in (*args.data, *args.dataset, *args.images)]
    if not names:
        raise ValueError("no data: give --data, --dataset or --images")
    configs = teacher_configs(args.teacher, args.device)
    known = [name for source in names for name in MetadataCatalog.get(source).get("thing_classes", [])]
    known += [name for cfg in configs for name in cfg.DATASETS.CLASS_NAMES]
    classes = args.classes or list(dict.fromkeys(known))
    thresholds = read_thresholds(args.threshold, classes)
    teachers = Teachers(configs, classes, thresholds)

    text = json.dumps([args.data, args.dataset, args.images, args.teacher, classes, thresholds])
    identity = hashlib.sha256(text.encode()).hexdigest()
    records = DatasetCatalog.get(register_merged(f"pseudo_{identity[:12]}", names, classes))
    output = Path(args.output)
    progress = Progress(output.with_name(output.name + ".part"), identity)
    labelled = label_images(records, classes, teachers, progress)
    folders = [os.path.dirname(os.path.abspath(image["file_name"])) for image in labelled]
    image_root = args.image_root or os.path.commonpath(folders)
    info = {"description": "true boxes and pseudo labels", "thresholds": thresholds}
    write_coco(output, labelled, classes, image_root, info)
    progress.finish()
    pseudo = ["score" in annotation for image in labelled for annotation in image["annotations"]]
    print(
        f"{output}: {len(labelled)} images, {pseudo.count(False)} true boxes, {pseudo.count(True)} pseudo labels\n"
        f"train with DATASETS.TRAIN_JSON {output} DATASETS.TRAIN_IMAGES {image_root}"
    )
    return output


if __name__ == "__main__":
    with one_line_errors():
        main()
