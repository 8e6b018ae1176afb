"""Tiny detectors with random weights, as a config with a checkpoint, and pictures for them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

import centerx  # noqa: F401  (registers its models and recipe)
import plain_detr  # noqa: F401
from d2x.config.load import load_cfg
from d2x.data.prepare import prepare_classes
from d2x.deploy.check import DEFAULT, Comparison, compare, merge
from d2x.deploy.verify import to_detections
from d2x.inference.predictor import Predictor

ROOT = Path(__file__).resolve().parents[2]
CLASSES = ["circle", "square", "star"]


def save_tiny(cfg: CfgNode, path: Path, gain: float = 1.0) -> CfgNode:
    """Write a checkpoint of random weights for a config; returns the config with it."""
    model = build_model(cfg)
    randomise(model, gain)
    torch.save({"model": model.state_dict()}, path)
    cfg.MODEL.WEIGHTS = str(path)
    return cfg


def tiny_centerx(folder: Path, *opts: object) -> CfgNode:
    """CenterX of the quick-start's kind, a tenth as wide; ``opts`` are KEY, VALUE, ... over it."""
    words = ["DATASETS.CLASS_NAMES", CLASSES, "MODEL.SMALL_RESNET.WIDTHS", [8, 12, 16, 24]]
    words += ["MODEL.CENTERNET.NECK.CHANNELS", [16, 16, 16], "MODEL.CENTERNET.HEAD_CHANNELS", 16, *opts]
    cfg = prepare_classes(load_cfg(str(ROOT / "projects/CenterX/configs/quickstart.yaml"), words))
    return save_tiny(cfg, folder / "model.pth")


def tiny_plain_detr(folder: Path, *opts: object) -> CfgNode:
    """Plain-DETR of the quick-start's kind, a quarter as wide, its images padded no more than needed."""
    words = ["DATASETS.CLASS_NAMES", CLASSES, "MODEL.SMALL_RESNET.WIDTHS", [8, 16], "MODEL.SMALL_RESNET.BLOCKS", [1, 1]]
    node = "MODEL.PLAIN_DETR."
    words += [node + "HIDDEN_DIM", 32, node + "NUM_HEADS", 2, node + "FEEDFORWARD_DIM", 48, node + "DECODER_LAYERS", 2]
    words += [node + "BOX_RPB.HIDDEN_DIM", 16, node + "PAD_MULTIPLE", 1, *opts]
    cfg = prepare_classes(load_cfg(str(ROOT / "projects/PlainDETR/configs/quickstart.yaml"), words))
    # Position codes of boxes turn once a pixel: large weights after them would magnify the last bits of coordinates.
    return save_tiny(cfg, folder / "model.pth", gain=0.5)


def randomise(model: nn.Module, gain: float) -> None:
    """Random weights and batch-norm statistics that keep activations near one (at gain 1), and scores apart."""
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if not value.is_floating_point():
            continue
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith("running_var"):
            value.copy_(1 + noise.abs())
        elif value.dim() > 1:
            value.copy_(gain * noise * (2 / value[0].numel()) ** 0.5)
        else:
            value.copy_(name.endswith("weight") + 0.1 * noise)
        if name == "head.size.out.bias":
            value.fill_(4.0)  # cells: boxes have an area


def pictures(count: int, *, smallest: int = 20, largest: int = 160, seed: int = 0) -> list[np.ndarray]:
    """(H, W, 3) uint8 noise with a few flat rectangles, each of another size."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        height, width = rng.integers(smallest, largest, 2)
        picture = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        for _ in range(4):
            y, x = rng.integers(0, height), rng.integers(0, width)
            picture[y : y + height // 3, x : x + width // 3] = rng.integers(0, 256, 3)
        found.append(picture)
    return found


def compare_all(cfg: CfgNode, detector, images: Sequence[np.ndarray]) -> Comparison:
    """An exported model with PyTorch's own inference."""
    predictor, total = Predictor(cfg), Comparison()
    for i, image in enumerate(images):
        expected, found = to_detections(predictor(image)), detector(image)
        total = merge(total, compare(expected, found, limit=cfg.TEST.DETECTIONS_PER_IMAGE, name=str(i)), DEFAULT)
    return total
