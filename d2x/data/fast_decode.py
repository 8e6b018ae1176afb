"""Image files to pixels: everyday JPEGs by simplejpeg where it is installed, all others by Pillow.

Both wrap libjpeg-turbo, so pixels are the same; Pillow goes through the file in small pieces and copies the pixels
twice, which takes about as long as the decoding itself.
"""

import io
import os
import warnings

import numpy as np
from detectron2.data.detection_utils import convert_PIL_to_numpy
from PIL import ExifTags, Image

from d2x.data.rules.image_files import decode, upright

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

_JPEG_START = b"\xff\xd8\xff"


def read_pixels(path: str | os.PathLike, image_format: str | None, *, fast: bool = True) -> np.ndarray:
    """An image file, turned as its EXIF tag says.

    Args:
        image_format: as of detectron2's ``read_image``, "RGB" or "BGR", say.
        fast: False for Pillow alone.

    Returns:
        (h, w, c), as ``read_image`` gives it.

    Raises:
        ValueError: it is no regular file, no image, or cut off.
    """
    pixels = decode_plain_jpeg(path, image_format) if fast and image_format in ("RGB", "BGR") else None
    return convert_PIL_to_numpy(upright(decode(path)), image_format) if pixels is None else pixels


def decode_plain_jpeg(path: str | os.PathLike, colour_order: str) -> np.ndarray | None:
    """(h, w, 3) uint8 of a JPEG in colour or grey that is to be shown as it is; None for any other file.

    Nothing is judged here: a file that is damaged in whatever way is left to Pillow, which can say what is wrong.
    """
    if simplejpeg is None or not os.path.isfile(path):
        return None
    try:
        with open(path, "rb") as file:
            start = file.read(len(_JPEG_START))
            if start != _JPEG_START:
                return None
            data = start + file.read()
        return simplejpeg.decode_jpeg(data, colour_order) if _is_plain(data) else None
    except Exception:  # simplejpeg raises ValueError at the first oddity, Pillow's reading of the header anything
        return None


def _is_plain(data: bytes) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # odd metadata; and many pixels, which Pillow takes for an attack at some point
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as header:  # reads no pixels
            as_it_is = header.getexif().get(ExifTags.Base.Orientation, 1) == 1
            return as_it_is and header.format == "JPEG" and header.mode in ("RGB", "L")
