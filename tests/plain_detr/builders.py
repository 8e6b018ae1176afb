"""Tiny detectors and batches for the tests of this folder."""

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn

from d2x.config.keys import get_base_cfg
from plain_detr import PlainDETR

VARIANTS = {
    "delta": {"BOX_CODER": "delta"},
    "sigmoid": {"BOX_CODER": "sigmoid", "POSITION_ENCODING": "sine"},
    "absolute": {"BOX_CODER": "sigmoid", "POSITION_ENCODING": "sine", "BOX_RPB.KIND": "none"},
}


def tiny_config(**changes) -> CfgNode:
    """A detector of width 32 on a tiny Swin V2; ``changes`` are keys below MODEL.PLAIN_DETR, or whole ones."""
    cfg = get_base_cfg()
    cfg.MODEL.DEVICE, cfg.MODEL.META_ARCHITECTURE = "cpu", "PlainDETR"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    cfg.MODEL.BACKBONE.NAME = "build_swin_v2_backbone"
    swin = cfg.MODEL.SWIN_V2
    swin.EMBED_DIM, swin.DEPTHS, swin.NUM_HEADS, swin.WINDOW_SIZE = 8, (1, 1, 2, 2), (1, 1, 2, 2), 4
    swin.PRETRAINED_WINDOW_SIZES, swin.DROP_PATH = (0, 0, 0, 0), 0.0
    node = cfg.MODEL.PLAIN_DETR
    node.NUM_CLASSES, node.HIDDEN_DIM, node.NUM_HEADS, node.FEEDFORWARD_DIM = 3, 32, 2, 48
    node.DECODER_LAYERS, node.NUM_QUERIES, node.BOX_RPB.HIDDEN_DIM = 2, 8, 16
    node.ONE_TO_MANY.QUERIES, node.ONE_TO_MANY.REPEATS = 12, 2
    node.PROPOSALS.ANCHOR_SIZE = 0.0
    for key, value in changes.items():
        target = key if key.split(".")[0] in cfg else f"MODEL.PLAIN_DETR.{key}"
        cfg.merge_from_list([target, value])
    return cfg


def tiny_model(**changes) -> PlainDETR:
    """The detector of ``tiny_config`` with random weights, none at its initial value, in evaluation mode."""
    model = build_model(tiny_config(**changes))
    randomise(model)
    return model.eval()


def randomise(model: nn.Module, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if parameter.dim() > 1:
            scale = 0.1 if "raw_box.4" in name else parameter[0].numel() ** -0.5
            parameter.data = noise * scale
        else:
            parameter.data = ("norm" in name and name.endswith("weight")) + 0.1 * noise


def record(
    height: int, width: int, boxes: list[list[float]] = (), classes: list[int] | None = None, seed: int = 0
) -> dict:
    """One mapped dict: a random image, ``boxes`` xyxy in its pixels, twice that size as a file."""
    generator = torch.Generator().manual_seed(seed)
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.tensor(list(boxes), dtype=torch.float32).view(-1, 4))
    classes = [index % 3 for index in range(len(boxes))] if classes is None else classes
    instances.gt_classes = torch.tensor(classes, dtype=torch.int64)
    image = torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
    return {
        "image": image,
        "instances": instances,
        "height": 2 * height,
        "width": 2 * width,
        "file_name": f"image_{seed}.png",
    }


def random_record(height: int, width: int, count: int, seed: int) -> dict:
    """``record`` with ``count`` random boxes inside."""
    generator = torch.Generator().manual_seed(1000 + seed)
    corners = torch.rand(count, 2, 2, generator=generator).sort(dim=1).values * torch.tensor([width, height])
    corners[:, 1] += 1
    return record(height, width, corners.flatten(1).tolist(), seed=seed)
