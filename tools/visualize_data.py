#!/usr/bin/env python3
"""Draw a data set's ground truth and, beside it, samples as the augmentations of a config make them for training."""

import argparse
import difflib
import random
import sys
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.env import seed_all_rng
from detectron2.utils.visualizer import Visualizer
from tqdm import tqdm

from d2x.config.arguments import config_parser, read_config
from d2x.data.images import read_image
from d2x.data.mapper import DetectionMapper, make_train_mapper
from d2x.data.prepare import prepare_data
from d2x.data.sets.builtin import register_builtin
from d2x.data.sets.coco_json import register_coco_json
from d2x.data.sets.shapes import register_shapes
from d2x.detectors import get_recipe
from d2x.errors import one_line_errors
from d2x.report.predictions import draw_ground_truth, save_grid, titled

EPILOG = """examples:
  what a config trains on   tools/visualize_data.py --config-file projects/CenterX/configs/quickstart.yaml
  a registered data set     tools/visualize_data.py --dataset crowd_human_train --output output/crowd_human.png
  your own data             tools/visualize_data.py --json a.json --images a/ --count 40 --output output/mine
                            (a folder: one picture for each image)
  your data as trained on   tools/visualize_data.py --config-file projects/CenterX/configs/quickstart.yaml \\
                              --json a.json --images a/ --samples 4 INPUT.RANDOM_FLIP none

Without --config-file nothing is augmented; with it, its DATASETS.TRAIN is the default. Data sets of other kinds are
looked for below the folder in the environment variable DETECTRON2_DATASETS.
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = config_parser(__doc__, EPILOG, required=False)
    parser.add_argument("--dataset", metavar="NAME", help="a registered data set, such as shapes_train")
    parser.add_argument("--json", help="COCO json of your own data")
    parser.add_argument("--images", metavar="FOLDER", help="image folder of --json")
    parser.add_argument("--output", default="output/data.png", help="a .png or .jpg, or a folder (default %(default)s)")
    parser.add_argument("--count", type=int, default=8, help="images to show (default %(default)s)")
    parser.add_argument("--samples", type=int, default=2, help="augmented samples of each (default %(default)s)")
    parser.add_argument("--columns", type=int, default=2, help="images side by side in the grid (default %(default)s)")
    parser.add_argument("--width", type=int, default=320, help="of one picture in pixels (default %(default)s)")
    parser.add_argument("--shuffle", action="store_true", help="random images instead of evenly spread ones")
    parser.add_argument("--seed", type=int, default=0, help="of --shuffle and the augmentations (default %(default)s)")
    args = parser.parse_args(argv)
    if bool(args.json) != bool(args.images):
        parser.error("--json and --images belong together")
    if args.json and args.dataset:
        parser.error("give --dataset or --json, not both")
    if not (args.config_file or args.dataset or args.json):
        parser.error("nothing to draw: give --dataset, --json and --images, or --config-file")
    if args.opts and not args.config_file:
        parser.error("config overrides need a --config-file")
    for name in ("count", "columns", "width"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")
    return args


def register(args: argparse.Namespace, cfg: CfgNode | None) -> str:
    """Register what the arguments name, or else the config's first training set; returns the data set's name."""
    if args.json:
        return register_coco_json("user_data", args.json, args.images)
    if cfg is not None and not args.dataset:
        prepare_data(cfg)
        if not cfg.DATASETS.TRAIN:
            raise ValueError(f"{args.config_file}: DATASETS.TRAIN is empty; give --dataset or --json and --images")
        return cfg.DATASETS.TRAIN[0]
    register_builtin()
    register_shapes()
    if args.dataset not in DatasetCatalog:
        near = difflib.get_close_matches(args.dataset, DatasetCatalog.list(), n=3)
        raise ValueError(f"unknown data set '{args.dataset}'" + (f"; did you mean {', '.join(near)}?" if near else ""))
    return args.dataset


def choose(records: list[dict], count: int, shuffle: bool, seed: int) -> list[dict]:
    """``count`` records, evenly spread or at random."""
    if shuffle:
        return random.Random(seed).sample(records, min(count, len(records)))
    return [records[round(i)] for i in np.linspace(0, len(records) - 1, min(count, len(records)))]


def draw_row(record: dict, mapper: DetectionMapper | None, args: argparse.Namespace, metadata) -> np.ndarray:
    """Ground truth and augmented samples of one record, side by side.

    Raises:
        ValueError, FileNotFoundError: the image cannot be read; names the file.
    """
    image = read_image(record["file_name"])
    title = f"ground truth, {image.shape[1]} x {image.shape[0]}, {len(record.get('annotations', []))} boxes"
    pictures = [titled(draw_ground_truth(image, record, metadata, args.width / image.shape[1]), title)]
    if mapper is not None:
        samples = [sample for sample in (mapper(record) for _ in range(args.samples)) if sample is not None]
        pictures += [draw_sample(sample, mapper.image_format, metadata, args.width) for sample in samples]
    tallest, gap = max(picture.shape[0] for picture in pictures), 4
    padded = [np.pad(p, ((0, tallest - p.shape[0]), (0, gap), (0, 0)), constant_values=255) for p in pictures]
    return np.hstack(padded)[:, :-gap]


def draw_sample(sample: dict, channels: str, metadata, width: int) -> np.ndarray:
    """A mapper's (3, h, w) image and the boxes in its pixels, as an RGB picture ``width`` px wide with a title."""
    pixels = sample["image"].clamp(0, 255).byte().permute(1, 2, 0).numpy()
    pixels = np.ascontiguousarray(pixels[..., ::-1] if channels == "BGR" else pixels)
    instances = sample["instances"]
    drawer = Visualizer(pixels, metadata, scale=width / pixels.shape[1])
    labels = [metadata.thing_classes[label] for label in instances.gt_classes]
    drawn = drawer.overlay_instances(labels=labels, boxes=instances.gt_boxes).get_image()
    return titled(drawn, f"augmented, {pixels.shape[1]} x {pixels.shape[0]}, {len(instances)} boxes")


def main(argv: list[str] | None = None) -> Path:
    """Run; returns the picture's or the folder's path."""
    args = parse_args(argv)
    output = Path(args.output)
    cfg = read_config(args) if args.config_file else None
    dataset, mapper = register(args, cfg), None
    if cfg is not None:
        cfg.DATASETS.TRAIN = (dataset,)
        mapper = make_train_mapper(cfg, get_recipe(cfg.MODEL.META_ARCHITECTURE).train_augmentations(cfg))
    records, metadata = DatasetCatalog.get(dataset), MetadataCatalog.get(dataset)
    seed_all_rng(args.seed)
    rows, bad = {}, []
    for record in tqdm(choose(records, args.count, args.shuffle, args.seed), desc="draw", unit="image"):
        try:
            rows[record["file_name"]] = draw_row(record, mapper, args, metadata)
        except (ValueError, FileNotFoundError) as error:
            bad.append(str(error))
    for line in bad:
        print(f"skipped: {line}", file=sys.stderr)
    if not rows:
        raise ValueError(f"data set '{dataset}': none of {len(bad)} images could be drawn; the first: {bad[0]}")
    if output.suffix.lower() in (".png", ".jpg", ".jpeg"):
        save_grid(list(rows.values()), output, args.columns)
    else:
        for number, (name, row) in enumerate(rows.items()):
            save_grid([row], output / f"{number:04d}_{Path(name).stem}.png", 1)
    print(
        f"{dataset}: {len(rows)} of {len(records)} images, classes {', '.join(metadata.thing_classes[:20])}: {output}"
    )
    return output


if __name__ == "__main__":
    with one_line_errors():
        main()
