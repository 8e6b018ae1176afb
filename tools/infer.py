#!/usr/bin/env python3
"""Detect with an exported model of any format. Needs numpy, Pillow, tqdm and the format's runtime."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from tqdm import tqdm

from d2x.data.images import find_images, read_image
from d2x.deploy import load

COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#46c8f0", "#f032e6", "#bcbd22")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example: tools/infer.py --model output/onnx --input photos/ --output output/infer --draw",
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="folder that tools/export_model.py wrote")
    parser.add_argument("--input", nargs="+", required=True, help="image files and folders of images")
    parser.add_argument("--output", default="output/infer", metavar="DIR", help="default: %(default)s")
    parser.add_argument("--threshold", type=float, default=0.3, help="least score (default %(default)s)")
    parser.add_argument("--draw", action="store_true", help="also write pictures with the boxes")
    parser.add_argument("--threads", type=int, help="CPU threads (default: the runtime's choice)")
    parser.add_argument(
        "--precision", choices=("fp32", "fp16"), help="OpenVINO: exact, or what is fastest (default: as exported)"
    )
    return parser.parse_args(argv)


def draw(image: np.ndarray, records: Sequence[dict]) -> Image.Image:
    """A copy of an RGB image with the boxes, class names and scores."""
    picture = Image.fromarray(image)
    canvas = ImageDraw.Draw(picture)
    for record in records:
        x, y, width, height = record["bbox"]
        colour = COLOURS[record["category_id"] % len(COLOURS)]
        canvas.rectangle([x, y, x + width, y + height], outline=colour, width=2)
        canvas.text((x + 3, y + 1), f"{record['category']} {record['score']:.2f}", fill=colour)
    return picture


def main(argv: Sequence[str] | None = None) -> Path:
    """Run; returns the path of the results json."""
    args = parse_args(argv)
    files = find_images(args.input)
    detector = load(args.model, threads=args.threads, precision=args.precision)
    channels = detector.manifest.channels
    output = Path(args.output)
    output.mkdir(parents=True, exist_ok=True)
    records: list[dict] = []
    for file in tqdm(files, desc="detect", unit="image"):
        image = read_image(file, channels)
        of_image = detector(image, args.threshold).to_coco(str(file), detector.classes)
        records += of_image
        if args.draw:
            draw(image if channels == "RGB" else image[..., ::-1].copy(), of_image).save(output / f"{file.stem}.jpg")
    results = output / "results.json"
    results.write_text(json.dumps({"categories": detector.classes, "detections": records}), encoding="utf-8")
    print(f"{len(files)} images, {len(records)} detections: {results}")
    return results


if __name__ == "__main__":
    try:
        main()
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {' '.join(str(error).split())}")
