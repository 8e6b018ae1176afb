"""Loading of training images, 640 x 480 JPEGs with DETR's augmentation: ours against detectron2's mapper with Pillow.

First in this process, on one core; then by loader workers, as in training. The pictures are synthetic (smooth colours
and some grain, as many bytes as photos have); the mappers get the same records and the same random numbers.
"""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from detectron2.data.build import trivial_batch_collator
from detectron2.structures import BoxMode
from PIL import Image
from torch.utils.data import DataLoader

from benchmarks.baselines.data_loading import plain_mapper
from benchmarks.growth import draw_growth, growth_table
from benchmarks.harness import Bar, Comparison, add_options, compare, prepare
from benchmarks.report import write
from d2x.config.load import load_cfg
from d2x.data.mapper import make_train_mapper
from d2x.detectors import get_recipe
from d2x.engine.resume.seeding import Place, SeededDataset
from d2x.errors import one_line_errors

CONFIG = "projects/PlainDETR/configs/swinv2_s_sup_boxrpb_12ep.yaml"
PLAIN, FAST = "detectron2", "fast"
BAR = Bar(time=1 / 1.5)
BOXES = 7  # in an image, as in COCO


def make_images(folder: Path, count: int, width: int, height: int, quality: int = 92) -> list[dict]:
    """Write JPEGs; their records, with random boxes."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(count):
        pixels = sum(
            strength * _noise(rng, cells, width, height) for cells, strength in ((4, 50), (14, 30), (60, 18), (220, 12))
        )
        path = folder / f"{number}.jpg"
        Image.fromarray((pixels + 120).clip(0, 255).astype(np.uint8)).save(path, quality=quality)
        sides = rng.uniform(0.05, 0.5, (BOXES, 2)) * (width, height)
        corners = rng.uniform(0, 0.5, (BOXES, 2)) * (width, height)
        annotations = [
            {"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0, "iscrowd": 0}
            for box in np.concatenate([corners, sides], axis=1).tolist()
        ]
        records.append(
            {"file_name": str(path), "width": width, "height": height, "image_id": number, "annotations": annotations}
        )
    return records


def _noise(rng: np.random.Generator, cells: int, width: int, height: int) -> np.ndarray:
    """(height, width, 3) smooth noise, about ``cells`` waves wide."""
    grid = rng.normal(size=(3, max(2, cells * height // width), cells)).astype(np.float32)
    planes = [Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC) for plane in grid]
    return np.stack([np.asarray(plane) for plane in planes], axis=-1)


def mappers(cfg: CfgNode) -> dict[str, Callable[[dict], dict]]:
    """Both, by name."""
    augmentations = get_recipe(cfg.MODEL.META_ARCHITECTURE).train_augmentations(cfg)
    return {PLAIN: plain_mapper(cfg), FAST: make_train_mapper(cfg, augmentations)}


def here(records: list[dict], mapper: Callable[[dict], dict]) -> Callable[[], None]:
    """A run that maps every record in this process."""
    data = SeededDataset(records, mapper, 0)

    def run() -> None:
        for place in _places(records):
            data[place]

    return run


def in_workers(records: list[dict], mapper: Callable[[dict], dict], workers: int) -> Callable[[], None]:
    """A run that maps every record in worker processes, which stay for the next run."""
    loader = DataLoader(
        SeededDataset(records, mapper, 0),
        sampler=_places(records),
        batch_size=2,
        num_workers=workers,
        persistent_workers=True,
        collate_fn=trivial_batch_collator,
    )

    def run() -> None:
        for _ in loader:
            pass

    return run


def _places(records: list[dict]) -> list[Place]:
    return [Place(number, number) for number in range(len(records))]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.data_loading",
        description=__doc__,
        epilog="bar: 1.5 times as many images a second in a worker, which is a time <= 0.667x",
    )
    parser.add_argument("--config-file", default=CONFIG, help="a Plain-DETR config (default %(default)s)")
    parser.add_argument("--images", type=int, default=128, help="in a round (default %(default)s)")
    parser.add_argument("--size", type=int, nargs=2, default=(640, 480), metavar=("W", "H"), help="default: 640 480")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 3, 4], help="default: 1 2 3 4; may be empty")
    add_options(parser, "data_loading")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> list[Comparison]:
    """Run; returns the comparisons."""
    args = parse_args(argv)
    args.threads = args.threads or 1  # as in a worker
    prepare(args)
    cfg = load_cfg(args.config_file, ["DATASETS.TRAIN", "()"])
    images, size, workers = (4, (160, 120), args.workers[:1]) if args.quick else (args.images, args.size, args.workers)
    found = []
    with tempfile.TemporaryDirectory() as folder:
        records, both = make_images(Path(folder), images, *size), mappers(cfg)
        what = f"{images} JPEGs of {size[0]} x {size[1]}"
        runs = {name: here(records, mapper) for name, mapper in both.items()}
        found += compare(f"{what}, one core", runs, baseline=PLAIN, repeats=args.repeats, bars={FAST: BAR})
        for count in workers:
            runs = {name: in_workers(records, mapper, count) for name, mapper in both.items()}
            bars = {FAST: BAR} if count == 1 else {}
            found += compare(f"{what}, workers: {count}", runs, baseline=PLAIN, repeats=args.repeats, bars=bars)
    rates = {
        PLAIN: [images / one.baseline_seconds for one in found[1:]],
        FAST: [images / one.seconds for one in found[1:]],
    }
    note = "Seconds of a loader's workers are no CPU time of this process: only the first line's CPU ratio counts.\n\n"
    more = note + growth_table("workers", workers, rates, "images/s")
    write(found, args.output, args.name, quick=args.quick, more=more)
    if workers:
        draw_growth("workers", workers, rates, "images/s", Path(args.output) / f"{args.name}_workers.png", log=False)
    return found


if __name__ == "__main__":
    with one_line_errors():
        main()
