"""Augmentations that detectron2 lacks: colour through torchvision, warps and crops that know of the boxes.

All are detectron2 ``Augmentation`` s, draw from numpy's global generator like detectron2's own, and expect RGB uint8
images (h, w, 3). Boxes are xyxy px, (0, 0) being the top left corner of the top left pixel.

detectron2 reads the names of ``get_transform``'s arguments, which its base class declares as ``*args``, and fvcore's
abstract ``apply_*`` have no return type: hence the ignored overrides.
"""

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from detectron2.data import transforms as T
from fvcore.transforms.transform import CropTransform, NoOpTransform, Transform
from PIL import Image
from torch import nn
from torchvision.transforms import v2


class StrongColour(T.Augmentation):
    """With a probability, a few strong changes: jitter, blur, noise, sharpness, JPEG, posterising and others.

    Stands where the released code has its "imgaug" set; geometry stays as it is.

    Args:
        prob: how often an image is changed.
        most: one to so many operations on an image, at most 9.
    """

    def __init__(self, *, prob: float = 0.5, most: int = 3):
        super().__init__()
        self.prob, self.most = prob, most
        self._operations = [
            v2.ColorJitter(0.5, 0.5, 0.5, 0.1),
            v2.GaussianBlur(5, sigma=(0.3, 2.0)),
            _GaussianNoise(5.0, 20.0),
            v2.RandomAdjustSharpness(3.0, p=1.0),
            v2.JPEG((20, 80)),
            v2.RandomPosterize(4, p=1.0),
            v2.RandomEqualize(p=1.0),
            v2.RandomGrayscale(p=1.0),
            v2.RandomChannelPermutation(),
        ]
        if not 1 <= most <= len(self._operations):
            raise ValueError(f"StrongColour: most must be 1 to {len(self._operations)}, got {most}")

    def get_transform(self, image: np.ndarray) -> Transform:  # pyright: ignore[reportIncompatibleMethodOverride]
        count = np.random.randint(1, self.most + 1)
        chosen = np.random.choice(len(self._operations), count, replace=False)
        operations = v2.Compose([self._operations[index] for index in chosen])
        apply, seed = np.random.uniform() < self.prob, int(np.random.randint(2**31 - 1))
        return T.ColorTransform(partial(_with_torchvision, operations, seed)) if apply else NoOpTransform()


class Warp(Transform):
    """Scale and shift the content onto a canvas of another size; what lies outside the image gets one colour.

    detectron2's ``ExtentTransform`` skips pixels when it makes things smaller, and its colour reaches no canvas.

    Args:
        matrix: (2, 3), takes (x, y, 1) of the source to (x, y) of the canvas, px from corners (not pixel centres). Only
            scale and shift: the off-diagonal entries are 0.
        source_hw, canvas_hw: sizes as (height, width).
        fill: colour outside, one value or one per channel.
    """

    def __init__(
        self,
        matrix: np.ndarray,
        *,
        source_hw: tuple[int, int],
        canvas_hw: tuple[int, int],
        fill: float | Sequence[float] = 0,
    ):
        super().__init__()
        self.matrix = np.asarray(matrix, dtype=np.float64)
        self.source_hw, self.canvas_hw, self.fill = source_hw, canvas_hw, fill

    def apply_image(self, img: np.ndarray) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        picture = Image.fromarray(img)
        shrink = max(1, int(1 / max(self.matrix[0, 0], self.matrix[1, 1])))  # bilinear alone would skip pixels
        fill = tuple(int(round(value)) for value in np.broadcast_to(self.fill, (img.shape[2],)))
        # Whole blocks only: Pillow takes a cut-off one at the border for a whole one, which would stretch the content.
        whole = Image.new(picture.mode, [-(-side // shrink) * shrink for side in picture.size], fill)
        whole.paste(picture)
        return self._resample(whole.reduce(shrink), shrink, Image.Resampling.BILINEAR, fill)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self._resample(Image.fromarray(segmentation), 1, Image.Resampling.NEAREST, 0)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:  # pyright: ignore[reportIncompatibleMethodOverride]
        coords = np.asarray(coords, dtype=np.float64)
        return coords @ self.matrix[:, :2].T + self.matrix[:, 2]

    def inverse(self) -> "Warp":
        linear = np.linalg.inv(self.matrix[:, :2])
        matrix = np.concatenate([linear, -linear @ self.matrix[:, 2:]], axis=1)
        return Warp(matrix, source_hw=self.canvas_hw, canvas_hw=self.source_hw, fill=self.fill)

    def _resample(self, picture: Image.Image, shrink: int, filter: Image.Resampling, fill) -> np.ndarray:
        back = self.inverse().matrix / shrink  # Pillow wants canvas to source; its coordinates are from corners, too
        height, width = self.canvas_hw
        return np.asarray(
            picture.transform((width, height), Image.Transform.AFFINE, back.ravel().tolist(), filter, fillcolor=fill)
        )


def window_matrix(centre: Sequence[float], side: float, canvas_hw: tuple[int, int]) -> np.ndarray:
    """(2, 3) matrix that puts the window around ``centre`` in the middle of the canvas, its width ``side`` filling it.

    Args:
        centre: (x, y) in the source, px.
        side: width of the window in the source, px; its height follows from the canvas.
        canvas_hw: (height, width) of the canvas, px.
    """
    height, width = canvas_hw
    scale = width / side
    return np.array(
        [[scale, 0.0, width / 2 - scale * centre[0]], [0.0, scale, height / 2 - scale * centre[1]]], dtype=np.float64
    )


class CenterAffine(T.Augmentation):
    """Random scale and shift onto a canvas of fixed size (Objects as Points, arXiv:1904.07850, section 5.1 and code).

    The window is the smallest one of the canvas's proportions that holds the whole image, times a factor from
    ``scale_range`` (above 1 the content gets smaller); its centre is uniform in the image, at least ``border`` px from
    the edges (halved until that is less than half of the side).

    Args:
        canvas_hw: (height, width) of what comes out.
        scale_range: smallest and largest factor.
        border: px of the source.
        fill: colour outside the image, usually the pixel mean.
    """

    def __init__(
        self,
        canvas_hw: tuple[int, int],
        *,
        scale_range: tuple[float, float] = (0.6, 1.4),
        border: float = 128,
        fill: float | Sequence[float] = 0,
    ):
        super().__init__()
        if not 0 < scale_range[0] <= scale_range[1]:
            raise ValueError(f"CenterAffine: scale_range must be positive and ascending, got {scale_range}")
        self.canvas_hw, self.scale_range, self.border, self.fill = canvas_hw, scale_range, border, fill

    def get_transform(self, image: np.ndarray) -> Transform:  # pyright: ignore[reportIncompatibleMethodOverride]
        height, width = image.shape[:2]
        aspect = self.canvas_hw[1] / self.canvas_hw[0]
        side = max(width, height * aspect) * np.random.uniform(*self.scale_range)
        centre = [self._within(width), self._within(height)]
        matrix = window_matrix(centre, side, self.canvas_hw)
        return Warp(matrix, source_hw=(height, width), canvas_hw=self.canvas_hw, fill=self.fill)

    def _within(self, side: int) -> float:
        border = self.border
        while border >= side / 2:
            border /= 2
        return np.random.uniform(border, side - border)


class ZoomOut(T.Augmentation):
    """Put the image at a random place on a larger canvas of one colour (SSD, arXiv:1512.02325, section 3.6).

    Args:
        prob: how often.
        largest: the canvas's sides are 1 to ``largest`` times the image's.
        fill: colour of the canvas, usually the pixel mean.
    """

    def __init__(self, *, prob: float = 0.5, largest: float = 4.0, fill: float | Sequence[float] = 0):
        super().__init__()
        if largest < 1:
            raise ValueError(f"ZoomOut: largest must be at least 1, got {largest}")
        self.prob, self.largest, self.fill = prob, largest, fill

    def get_transform(self, image: np.ndarray) -> Transform:  # pyright: ignore[reportIncompatibleMethodOverride]
        if np.random.uniform() >= self.prob:
            return NoOpTransform()
        height, width = image.shape[:2]
        ratio = np.random.uniform(1, self.largest)
        canvas = (int(height * ratio), int(width * ratio))
        top = np.random.randint(0, canvas[0] - height + 1)
        left = np.random.randint(0, canvas[1] - width + 1)
        matrix = np.array([[1, 0, left], [0, 1, top]])
        return Warp(matrix, source_hw=(height, width), canvas_hw=canvas, fill=self.fill)


class BoxCentreCrop(T.RandomCrop):
    """detectron2's ``RandomCrop``, placed so that the centre of at least one box is inside; as there without boxes.

    detectron2's ``gen_crop_transform_with_instance`` can miss the centre by a pixel, and fails if it is outside.

    One box is drawn, then a place among those that hold its centre. Boxes whose centre lies outside the image are not
    drawn. Boxes are cut at the border (by the mapper), also those whose centre is outside the crop.

    Args:
        crop_type: "relative_range", "relative", "absolute" or "absolute_range", see ``RandomCrop``.
        crop_size: (height, width) px or fractions, by the type.
    """

    def get_transform(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, image: np.ndarray, boxes: np.ndarray | None
    ) -> CropTransform:
        size = image.shape[:2]
        crop = self.get_crop_size(size)
        centre = _random_centre(boxes, size)
        top, left = (_random_start(*args) for args in zip(crop, size, centre))
        return CropTransform(left, top, crop[1], crop[0])


class _GaussianNoise(nn.Module):
    """Noise of a random strength on a uint8 image (torchvision's own wants floats)."""

    def __init__(self, weakest: float, strongest: float):
        super().__init__()
        self.weakest, self.strongest = weakest, strongest

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        sigma = torch.empty(()).uniform_(self.weakest, self.strongest)
        return (image + torch.randn(image.shape) * sigma).round().clamp(0, 255).to(image.dtype)


def _with_torchvision(transform: nn.Module, seed: int, image: np.ndarray) -> np.ndarray:
    """A v2 transform on an (h, w, 3) image, with its random choices fixed by ``seed``."""
    tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return transform(tensor).numpy().transpose(1, 2, 0)


def _random_centre(boxes: np.ndarray | None, size: tuple[int, int]) -> tuple[float | None, float | None]:
    """(y, x) of the centre of a random box, or (None, None)."""
    if boxes is None or not len(boxes):
        return None, None
    centres = (boxes[:, [1, 0]] + boxes[:, [3, 2]]) / 2
    centres = centres[((centres >= 0) & (centres < size)).all(axis=1)]
    return tuple(centres[np.random.randint(len(centres))]) if len(centres) else (None, None)


def _random_start(length: int, side: int, inside: float | None) -> int:
    """First pixel of a stretch of ``length`` within ``side`` that holds the point ``inside``."""
    first, last = 0, side - length
    if inside is not None:
        pixel = int(inside)
        first, last = max(first, pixel - length + 1), min(last, pixel)
    return int(np.random.randint(first, last + 1))
