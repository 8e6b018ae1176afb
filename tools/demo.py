#!/usr/bin/env python3
"""Detect in images, folders or videos: writes annotated copies and one COCO-style results json."""

import argparse
import functools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from detectron2.data.catalog import Metadata
from tqdm import tqdm

from d2x.atomic_files import write_text
from d2x.config.arguments import config_parser, read_config
from d2x.data.images import find_images, read_image
from d2x.data.prepare import prepare_classes
from d2x.deploy.verify import to_detections
from d2x.errors import one_line_errors
from d2x.inference.predictor import Predictor
from d2x.report.predictions import draw_instances

VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = config_parser(
        __doc__,
        "example: tools/demo.py --config-file output/quickstart/config.yaml --input photos/ a.mp4 \\\n"
        "  MODEL.WEIGHTS output/quickstart/model_final.pth",
    )
    parser.add_argument("--input", nargs="+", required=True, help="image files, folders of images, videos")
    parser.add_argument("--output", default="output/demo", help="folder for the results (default %(default)s)")
    parser.add_argument("--threshold", type=float, default=0.4, help="least score drawn (default %(default)s)")
    # --input takes any number of words, so the overrides (KEY with capitals and a dot) are split off first
    words = sys.argv[1:] if argv is None else list(argv)
    first = next((i for i, word in enumerate(words) if _is_config_key(word)), len(words))
    args = parser.parse_args(words[:first])
    args.opts = words[first:]
    return args


def _is_config_key(word: str) -> bool:
    head, dot, _ = word.partition(".")
    return bool(dot) and head.isupper() and "/" not in word


def read_frames(reader: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while True:
        there, frame = reader.read()
        if not there:
            return
        yield np.ascontiguousarray(frame[..., ::-1])


def annotate_video(path: Path, output: Path, draw: Callable[..., np.ndarray]) -> None:
    """Write a copy of a video: of every frame, in RGB, what ``draw`` makes of it and of its number, in BGR."""
    reader, writer = cv2.VideoCapture(str(path)), None
    if not reader.isOpened():
        raise ValueError(f"{path}: cannot be opened as a video")
    rate, total = reader.get(cv2.CAP_PROP_FPS) or 25.0, int(reader.get(cv2.CAP_PROP_FRAME_COUNT))
    for number, frame in enumerate(tqdm(read_frames(reader), total=total, desc=path.name, unit="frame")):
        drawn = np.ascontiguousarray(draw(frame, frame=number))
        if writer is None:
            size = (drawn.shape[1], drawn.shape[0])
            writer = cv2.VideoWriter(str(output), cv2.VideoWriter.fourcc(*"mp4v"), rate, size)
        writer.write(drawn)
    if writer is not None:
        writer.release()


def main(argv: list[str] | None = None) -> Path:
    """Run; returns the path of the results json."""
    args = parse_args(argv)
    inputs = find_images(args.input, also=VIDEO_SUFFIXES)
    cfg = prepare_classes(read_config(args))
    predictor, classes = Predictor(cfg), list(cfg.DATASETS.CLASS_NAMES)
    metadata = Metadata(name="demo", thing_classes=classes)
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    records: list[dict] = []

    def draw(path: Path, image: np.ndarray, **place: int) -> np.ndarray:
        instances = predictor(image if cfg.INPUT.FORMAT == "RGB" else image[..., ::-1])
        records.extend(to_detections(instances).to_coco(str(path), classes, **place))
        return draw_instances(image, instances, metadata, args.threshold)[..., ::-1]

    for path in tqdm(inputs, desc="detect", unit="file"):
        if path.suffix.lower() in VIDEO_SUFFIXES:
            annotate_video(path, output / f"{path.stem}.mp4", functools.partial(draw, path))
        else:
            cv2.imwrite(str(output / f"{path.stem}.jpg"), draw(path, read_image(path)))
    results = output / "results.json"
    write_text(results, json.dumps({"categories": classes, "detections": records}))
    print(f"{len(inputs)} inputs, {len(records)} detections; pictures and results.json in {output}")
    return results


if __name__ == "__main__":
    with one_line_errors():
        main()
