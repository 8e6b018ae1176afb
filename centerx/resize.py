"""The largest size that fits into a rectangle, at the image's own proportions."""

import cv2
import numpy as np
from detectron2.data import transforms as T
from fvcore.transforms.transform import Transform
from PIL import Image

from d2x.deploy.resize import INTERPOLATIONS, fitted_size, resize_image

ROUNDINGS = ("nearest", "down")


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
        if rounding not in ROUNDINGS:
            raise ValueError(f"INPUT.CENTERX.FIT_ROUNDING '{rounding}' is not one of {', '.join(ROUNDINGS)}")
        if interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"INPUT.CENTERX.FIT_RESAMPLING '{interpolation}' is not one of {', '.join(INTERPOLATIONS)}"
            )
        self.size, self.rounding, self.interpolation = tuple(size), rounding, interpolation

    def get_transform(self, image: np.ndarray) -> Transform:
        height, width = image.shape[:2]
        new = fitted_size((height, width), self.size, self.rounding)
        if self.interpolation == "bilinear":
            return T.ResizeTransform(height, width, *new, Image.Resampling.BILINEAR)
        return OpenCVResize((height, width), new, self.interpolation)


class OpenCVResize(Transform):
    """OpenCV's resize of an image.

    Args:
        old, new: (height, width) px.
        interpolation: "opencv_bilinear" or "opencv_area".
    """

    def __init__(self, old: tuple[int, int], new: tuple[int, int], interpolation: str):
        super().__init__()
        self.old, self.new, self.interpolation = old, new, interpolation

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        resized = resize_image(img, self.new, self.interpolation)
        return resized if resized.ndim == img.ndim else resized[..., None]

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return cv2.resize(segmentation, self.new[::-1], interpolation=cv2.INTER_NEAREST)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords * np.array([self.new[1] / self.old[1], self.new[0] / self.old[0]])

    def inverse(self) -> "OpenCVResize":
        return OpenCVResize(self.new, self.old, self.interpolation)
