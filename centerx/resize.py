"""The resize of evaluation, and the largest size that fits into a rectangle at the image's own proportions."""

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from PIL import Image

from d2x.deploy.resize import INTERPOLATIONS, fitted_size, resize_image, shortest_edge
from d2x.errors import require_choice

RESIZES = ("shortest_edge", "fixed", "fit", "center_affine", "none")
ROUNDINGS = ("nearest", "down")


def test_resize(cfg: CfgNode) -> dict:
    """The resize of evaluation that belongs to ``INPUT.CENTERX.RESIZE``, as ``d2x.deploy.resize`` describes it.

    "none" when ``INPUT.MIN_SIZE_TEST`` is 0 with "shortest_edge".

    Raises:
        ValueError: unknown ``INPUT.CENTERX.RESIZE``.
    """
    node = cfg.INPUT.CENTERX
    require_choice("INPUT.CENTERX.RESIZE", node.RESIZE, RESIZES)
    if node.RESIZE == "fixed":
        return {"kind": "fixed", "size": list(node.SIZE), "interpolation": "bilinear"}
    if node.RESIZE in ("fit", "center_affine"):
        rules = {"rounding": node.FIT_ROUNDING, "interpolation": node.FIT_RESAMPLING}
        return {"kind": "fit", "size": list(node.SIZE), **rules}
    return shortest_edge(0 if node.RESIZE == "none" else cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)


class FitInto(T.Augmentation):
    """Resize to the largest size that fits into ``size``, up or down; the network pads the rest.

    Args:
        size: (height, width) px; (s, s) bounds the longer side.
        rounding: of the resulting sides: "nearest", or "down" as in the released inference code, whose longer side can
            come out one pixel short (510.99999 is 510).
        interpolation: "bilinear" (Pillow, anti-aliased, as detectron2 resizes), or as the released inference
            ("opencv_bilinear") and deployment ("opencv_area") code.

    Raises:
        ValueError: an option is not one of those listed.
    """

    def __init__(self, size: tuple[int, int], *, rounding: str = "nearest", interpolation: str = "bilinear"):
        super().__init__()
        require_choice("INPUT.CENTERX.FIT_ROUNDING", rounding, ROUNDINGS)
        require_choice("INPUT.CENTERX.FIT_RESAMPLING", interpolation, INTERPOLATIONS)
        self.size, self.rounding, self.interpolation = size, rounding, interpolation

    # detectron2 reads the names of the arguments, while its base class declares any
    def get_transform(self, image: np.ndarray) -> T.Transform:  # pyright: ignore[reportIncompatibleMethodOverride]
        height, width = image.shape[:2]
        new = fitted_size((height, width), self.size, self.rounding)
        if self.interpolation == "bilinear":
            return T.ResizeTransform(height, width, *new, Image.Resampling.BILINEAR)
        return OpenCVResize((height, width), new, self.interpolation)


class OpenCVResize(T.ResizeTransform):
    """detectron2's resize with OpenCV's pixels: without anti-aliasing unless "opencv_area".

    Args:
        old, new: (height, width) px.
        interpolation: "opencv_bilinear" or "opencv_area".
    """

    def __init__(self, old: tuple[int, int], new: tuple[int, int], interpolation: str):
        super().__init__(*old, *new)
        self.new, self.interpolation = new, interpolation

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        if interp is not None:  # of a segmentation
            return super().apply_image(img, interp)
        return resize_image(img, self.new, self.interpolation)
