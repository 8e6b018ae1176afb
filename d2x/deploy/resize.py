"""Test-time resizes of the recipes: their description in a json file, and their execution without torch.

A description is a dict with ``kind``:

- ``none``;
- ``shortest_edge``: the shorter side to ``size``, or the longer one to ``max_size`` where it would exceed that;
- ``fixed``: to ``size`` (height, width), the aspect ratio not kept;
- ``fit``: the largest size that fits into ``size`` (height, width); ``rounding`` of the sides is "nearest" or "down".

``interpolation`` is "bilinear" (Pillow's, anti-aliased, the default), "opencv_bilinear" or "opencv_area" (an average
over source pixels).
"""

from typing import Any

import numpy as np
from PIL import Image

KINDS = ("none", "shortest_edge", "fixed", "fit")
INTERPOLATIONS = ("bilinear", "opencv_bilinear", "opencv_area")


def shortest_edge(size: int, max_size: int) -> dict[str, Any]:
    """The description of detectron2's own resize, by ``INPUT.MIN_SIZE_TEST`` (0 for none) and ``MAX_SIZE_TEST``."""
    resize = {"kind": "shortest_edge", "size": size, "max_size": max_size} if size else {"kind": "none"}
    return {**resize, "interpolation": "bilinear"}


def resized_size(resize: dict[str, Any], hw: tuple[int, int]) -> tuple[int, int]:
    """(height, width) that an image of ``hw`` gets.

    Raises:
        ValueError: an unknown ``kind``.
    """
    kind = resize["kind"]
    if kind == "none":
        return hw
    if kind == "fixed":
        height, width = resize["size"]
        return height, width
    if kind == "fit":
        return fitted_size(hw, resize["size"], resize["rounding"])
    if kind == "shortest_edge":
        return _shortest_edge(hw, resize["size"], resize["max_size"])
    raise ValueError(f"resize kind '{kind}' is not one of {', '.join(KINDS)}")


def fitted_size(hw: tuple[int, int], bounds: tuple[int, int], rounding: str = "nearest") -> tuple[int, int]:
    """The largest (height, width) at the proportions of ``hw`` that fits into ``bounds``; at least one pixel each."""
    ratio = min(bounds[0] / hw[0], bounds[1] / hw[1])
    half = 0.5 if rounding == "nearest" else 0.0
    height, width = (max(1, int(side * ratio + half)) for side in hw)
    return height, width


def resize_image(image: np.ndarray, hw: tuple[int, int], interpolation: str = "bilinear") -> np.ndarray:
    """(H, W, 3) uint8 to (h, w, 3) uint8; the same array when the size is right already."""
    if image.shape[:2] == tuple(hw):
        return image
    if interpolation == "bilinear":
        return np.asarray(Image.fromarray(image).resize((hw[1], hw[0]), Image.Resampling.BILINEAR))
    import cv2  # only these two need OpenCV

    how = {"opencv_bilinear": cv2.INTER_LINEAR, "opencv_area": cv2.INTER_AREA}[interpolation]
    return cv2.resize(image, (hw[1], hw[0]), interpolation=how)


def _shortest_edge(hw: tuple[int, int], size: int, max_size: int) -> tuple[int, int]:
    ratio = size / min(hw)
    height, width = (size, ratio * hw[1]) if hw[0] < hw[1] else (ratio * hw[0], size)
    if max(height, width) > max_size:
        shrink = max_size / max(height, width)
        height, width = height * shrink, width * shrink
    return int(height + 0.5), int(width + 0.5)
