#!/usr/bin/env python3
"""Detect in images, folders or videos: writes annotated copies and one COCO-style results json."""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
from detectron2.data.catalog import Metadata
from detectron2.structures import Instances
from tqdm import tqdm

from d2x.atomic_files import atomic_write
from d2x.config.load import load_cfg
from d2x.config.plugins import add_plugin_argument
from d2x.data.images import find_images, read_image
from d2x.data.prepare import prepare_classes
from d2x.errors import one_line_errors
from d2x.inference.predictor import Predictor
from d2x.report.predictions import draw_instances

VIDEO_SUFFIXES = {".mp4", ".avi", ".mov", ".mkv", ".webm"}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: tools/demo.py --config-file output/quickstart/config.yaml --input photos/ a.mp4 "
        "MODEL.WEIGHTS output/quickstart/model_final.pth",
    )
    parser.add_argument("--config-file", required=True, help="of the run, e.g. output/quickstart/config.yaml")
    parser.add_argument("--input", nargs="+", required=True, help="image files, folders of images, videos")
    parser.add_argument("--output", default="output/demo", help="folder for the results (default %(default)s)")
    parser.add_argument("--threshold", type=float, default=0.4, help="least score drawn (default %(default)s)")
    add_plugin_argument(parser)
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides, such as MODEL.WEIGHTS")
    # --input takes any number of words, so the overrides (KEY with capitals and a dot) are split off first
    words = sys.argv[1:] if argv is None else list(argv)
    first = next((i for i, word in enumerate(words) if _is_config_key(word)), len(words))
    args = parser.parse_args(words[:first])
    args.opts = words[first:]
    return args


def _is_config_key(word: str) -> bool:
    head, dot, _ = word.partition(".")
    return bool(dot) and head.isupper() and "/" not in word


def to_records(instances: Instances, source: str, frame: int | None = None) -> list[dict]:
    """COCO results: bbox is (x, y, w, h) in pixels; ``file_name`` (and ``frame``) stand for the image id."""
    place = {"file_name": source} if frame is None else {"file_name": source, "frame": frame}
    rows = zip(instances.pred_boxes.tensor.tolist(), instances.scores.tolist(), instances.pred_classes.tolist())
    return [
        {**place, "category_id": label, "bbox": [x0, y0, x1 - x0, y1 - y0], "score": score}
        for (x0, y0, x1, y1), score, label in rows
    ]


def video_frames(path: Path) -> Iterator[np.ndarray]:
    """RGB frames of a video."""
    reader = cv2.VideoCapture(str(path))
    if not reader.isOpened():
        raise ValueError(f"{path}: cannot be opened as a video")
    while True:
        more, frame = reader.read()
        if not more:
            break
        yield np.ascontiguousarray(frame[..., ::-1])
    reader.release()


def run_video(path: Path, predictor: Predictor, metadata, output: Path, threshold: float) -> list[dict]:
    """Write an annotated copy of a video; returns its results."""
    reader = cv2.VideoCapture(str(path))
    rate, total = reader.get(cv2.CAP_PROP_FPS) or 25.0, int(reader.get(cv2.CAP_PROP_FRAME_COUNT))
    reader.release()
    records, writer = [], None
    for index, frame in enumerate(tqdm(video_frames(path), total=total, desc=path.name, unit="frame")):
        found = predictor(frame)
        records += to_records(found, str(path), index)
        drawn = draw_instances(frame, found, metadata, threshold)[..., ::-1]
        if writer is None:
            size = (drawn.shape[1], drawn.shape[0])
            writer = cv2.VideoWriter(str(output / f"{path.stem}.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), rate, size)
        writer.write(np.ascontiguousarray(drawn))
    if writer is not None:
        writer.release()
    return records


def main(argv: list[str] | None = None) -> Path:
    """Run; returns the path of the results json."""
    args = parse_args(argv)
    inputs = find_images(args.input, also=VIDEO_SUFFIXES)
    cfg = prepare_classes(load_cfg(args.config_file, args.opts, plugins=args.plugin))
    predictor = Predictor(cfg)
    metadata = Metadata(name="demo", thing_classes=list(cfg.DATASETS.CLASS_NAMES))
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    records = []
    for path in tqdm(inputs, desc="detect", unit="file"):
        if path.suffix.lower() in VIDEO_SUFFIXES:
            records += run_video(path, predictor, metadata, output, args.threshold)
            continue
        image = read_image(path)
        found = predictor(image)
        records += to_records(found, str(path))
        drawn = draw_instances(image, found, metadata, args.threshold)
        cv2.imwrite(str(output / f"{path.stem}.jpg"), drawn[..., ::-1])
    results = output / "results.json"
    with atomic_write(results) as file:
        document = {"categories": list(cfg.DATASETS.CLASS_NAMES), "detections": records}
        file.write(json.dumps(document).encode())
    print(f"{len(inputs)} inputs, {len(records)} detections; pictures and results.json in {output}")
    return results


if __name__ == "__main__":
    with one_line_errors():
        main()
