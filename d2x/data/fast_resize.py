"""detectron2's resizing augmentations with torch's kernel for bytes in place of Pillow's, three to four times faster.

It is Pillow's algorithm (with filters that widen when an image gets smaller, and weights of 16 bits), vectorised. The
results differ by at most one level, in one of some ten thousand values of a larger image and one of a hundred of a
smaller one.
"""

import sys
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.data import transforms as T
from fvcore.transforms.transform import NoOpTransform
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

# Only there is the kernel vectorised; elsewhere Pillow is faster.
_HAS_KERNEL = torch.backends.cpu.get_cpu_capability().startswith("AVX")


class FastResizeTransform(T.ResizeTransform):
    """``ResizeTransform`` whose bilinear resizing of uint8 images with three channels is done by torch.

    What it returns is laid out channel by channel, so that ``transpose(2, 0, 1)`` of it is contiguous.
    """

    h: int
    w: int
    new_h: int
    new_w: int
    interp: int

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """
        Args:
            img: (h, w, c) or (h, w).
            interp: one of Pillow's; None for the transform's own.
        """
        bilinear = (self.interp if interp is None else interp) == Image.Resampling.BILINEAR
        suits = bilinear and img.dtype == np.uint8 and img.ndim == 3 and img.shape[2] == 3
        size = (self.new_h, self.new_w)
        if not (_HAS_KERNEL and suits and min(*img.shape[:2], *size) > 1):  # torch 2.14 fails on some single pixels
            return super().apply_image(img, interp)
        planes = _tensor(img).permute(2, 0, 1)[None]
        resized = F.interpolate(planes, size, mode="bilinear", align_corners=False, antialias=True)
        return resized[0].contiguous().numpy().transpose(1, 2, 0)


class ResizeShortestEdge(T.ResizeShortestEdge):
    """detectron2's, see there; ``fast`` False is exactly that."""

    def __init__(
        self,
        short_edge_length: int | Sequence[int],
        max_size: int = sys.maxsize,
        sample_style: str = "range",
        interp: int = Image.Resampling.BILINEAR,
        *,
        fast: bool = True,
    ):
        super().__init__(short_edge_length, max_size, sample_style, interp)
        self.fast = fast

    def get_transform(self, image: np.ndarray) -> NoOpTransform | T.ResizeTransform:
        transform = super().get_transform(image)
        return _faster(transform) if self.fast and isinstance(transform, T.ResizeTransform) else transform


class Resize(T.Resize):
    """detectron2's, see there; ``fast`` False is exactly that."""

    def __init__(self, shape: int | Sequence[int], interp: int = Image.Resampling.BILINEAR, *, fast: bool = True):
        super().__init__(shape, interp)
        self.fast = fast

    def get_transform(self, image: np.ndarray) -> T.ResizeTransform:
        transform = super().get_transform(image)
        return _faster(transform) if self.fast else transform


def _faster(transform: T.ResizeTransform) -> FastResizeTransform:
    return FastResizeTransform(**vars(transform))


def _tensor(img: np.ndarray) -> Tensor:
    """The same values; torch has no negative strides, as a flip leaves them, but flips far faster than numpy copies."""
    backwards = tuple(axis for axis, stride in enumerate(img.strides) if stride < 0)
    forwards = np.flip(img, backwards)
    tensor = torch.from_numpy(forwards if forwards.flags.writeable else forwards.copy())
    return tensor.flip(backwards) if backwards else tensor
