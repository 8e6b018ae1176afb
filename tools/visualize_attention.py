#!/usr/bin/env python3
"""Draw where Plain-DETR's queries look: cross-attention over the image with and without the bias by box, as one PNG."""

import argparse
from pathlib import Path

import numpy as np
import torch

from d2x.config.arguments import config_parser, read_config
from d2x.data.images import read_image
from d2x.data.prepare import prepare_classes
from d2x.errors import one_line_errors
from d2x.inference.predictor import Predictor
from d2x.report.predictions import save_grid, titled
from plain_detr.attention_maps import draw_attention, draw_box, query_attention

EPILOG = """One row a query: its box, its attention as computed, its attention had the bias been left out of that
layer. Maps are averaged over the heads.

example: tools/visualize_attention.py --config-file output/quickstart/config.yaml --input photo.jpg \\
  --output attention.png --count 4 MODEL.WEIGHTS output/quickstart/model_final.pth
"""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = config_parser(__doc__, EPILOG)
    parser.add_argument("--input", required=True, help="one image file")
    parser.add_argument("--output", default="output/attention.png", help="picture to write (default %(default)s)")
    parser.add_argument("--count", type=int, default=4, help="queries with the best scores (default %(default)s)")
    parser.add_argument("--query", type=int, action="append", default=[], help="this query instead; may be repeated")
    parser.add_argument("--layer", type=int, default=-1, help="decoder layer, from 0; negative: from the last one")
    parser.add_argument("--cell", type=int, default=360, help="width of one picture in pixels (default %(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> Path:
    """Run; returns the path of the picture."""
    args = parse_args(argv)
    if args.count < 1 or args.cell < 1:
        raise ValueError("--count and --cell must be at least 1")
    if not Path(args.input).is_file():
        raise FileNotFoundError(f"input not found: {args.input}")
    cfg = prepare_classes(read_config(args))
    if cfg.MODEL.META_ARCHITECTURE != "PlainDETR":
        raise ValueError(f"{args.config_file}: a {cfg.MODEL.META_ARCHITECTURE} has no cross-attention to draw")
    predictor = Predictor(cfg)
    image = np.ascontiguousarray(predictor.resize(read_image(args.input, cfg.INPUT.FORMAT)))
    pixels = torch.as_tensor(image.transpose(2, 0, 1).copy())
    found = query_attention(predictor.model, pixels, queries=args.query, count=args.count, layer=args.layer)
    if cfg.INPUT.FORMAT == "BGR":
        image = image[..., ::-1]
    scale, names = args.cell / image.shape[1], cfg.DATASETS.CLASS_NAMES
    pictures = []
    for query, box, score, label, *maps in zip(*found[:6]):
        name = names[label] if names else f"class {int(label)}"
        pictures.append(titled(draw_box(image, box, scale=scale), f"query {int(query)}: {name} {float(score):.2f}"))
        for title, attention in zip(("with box bias", "without"), maps):
            drawn = draw_attention(image, attention, box, stride=found.stride, scale=scale)
            pictures.append(titled(drawn, title))
    output = Path(args.output)
    save_grid(pictures, output, columns=3)
    print(f"attention of queries {found.query.tolist()} in {output}")
    return output


if __name__ == "__main__":
    with one_line_errors():
        main()
