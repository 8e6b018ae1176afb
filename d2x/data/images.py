"""Image files to pixels: the one place that opens an image file and knows what Pillow raises. No torch here.

Everyday JPEGs are decoded by simplejpeg where it is installed, all else by Pillow. Both wrap libjpeg-turbo, so pixels
are the same; Pillow goes through the file in small pieces and copies the pixels twice, which takes about as long as the
decoding itself.
"""

import contextlib
import io
import os
import warnings
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

try:
    import simplejpeg
except ImportError:
    simplejpeg = None

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})  # found in folders
# What Pillow may read: pictures of pixels. Others, EPS above all, are programs that it hands to an interpreter.
FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "MPO", "PCX", "PNG", "PPM", "SGI", "TGA", "TIFF", "WEBP")
_TURNS = {  # how each value of the EXIF tag is undone
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_JPEG_START = b"\xff\xd8\xff"


def find_images(inputs: Sequence[str | Path], also: Collection[str] = ()) -> list[Path]:
    """Image files, folders expanded.

    Args:
        also: suffixes of other files that may be named; a folder gives its images only.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: a folder without images, or a file of another kind; names it.
    """
    known = SUFFIXES.union(also)
    paths: list[Path] = []
    for item in map(Path, inputs):
        if item.is_dir():
            inside = sorted(path for path in item.iterdir() if path.suffix.lower() in SUFFIXES)
            if not inside:
                raise ValueError(f"no images in folder {item}")
            paths += inside
        elif not item.exists():
            raise FileNotFoundError(f"input not found: {item}")
        elif item.suffix.lower() in known:
            paths.append(item)
        else:
            raise ValueError(f"{item}: not a kind of file that is read ({', '.join(sorted(known))})")
    return paths


def read_image(path: str | os.PathLike, image_format: str | None = "RGB", *, fast: bool = True) -> np.ndarray:
    """(h, w, 3) uint8, turned as the EXIF tag says; detectron2's ``read_image``, but for files that are cut off.

    Args:
        path: a file, or an address that detectron2's ``PathManager`` knows.
        image_format: "RGB" or "BGR", or another one of detectron2's, whose arrays may have another shape.
        fast: False for Pillow alone.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no regular file, no image, or cut off. Both are one line that names the file.
    """
    try:
        local = _local_path(path)
        if not os.path.lexists(local):
            raise FileNotFoundError
        if image_format not in ("RGB", "BGR"):
            from detectron2.data.detection_utils import convert_PIL_to_numpy  # needs torch

            return convert_PIL_to_numpy(_upright(decode(local)), image_format)
        pixels = decode_plain_jpeg(local, image_format) if fast else None
        if pixels is None:
            pixels = np.asarray(upright_rgb(decode(local)))
            pixels = np.ascontiguousarray(pixels[..., ::-1]) if image_format == "BGR" else pixels
        return pixels
    except FileNotFoundError as error:
        raise FileNotFoundError(f"image not found: {path}") from error
    except (ValueError, OSError) as error:
        raise ValueError(f"cannot read image {path}: {' '.join(str(error).split())}") from error


def read_size(path: str | os.PathLike) -> tuple[int, int]:
    """(height, width) from a file's header, as it is stored: not turned.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no image.
    """
    if not os.path.lexists(path):
        raise FileNotFoundError(f"image not found: {path}")
    image = read_header(path)
    return image.height, image.width


@contextlib.contextmanager
def _value_errors() -> Iterator[None]:
    """Context manager and decorator: what Pillow raises becomes a ``ValueError``, its message one line."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata; and many pixels, which are an error at twice as many
            yield
    except Exception as error:  # Pillow's decoders raise anything from OSError to SyntaxError and struct.error
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


@_value_errors()
def decode(path: str | os.PathLike) -> Image.Image:
    """An image file, wholly read (the first one of several in it); not turned by its EXIF tag.

    Raises:
        ValueError: it is no regular file, no image, is cut off, or has so many pixels that Pillow suspects an attack.
    """
    with _open(path) as image:
        image.load()
        orientation(image)  # which Pillow keeps; some formats read it from the file
        return image


@_value_errors()
def read_header(path: str | os.PathLike) -> Image.Image:
    """The same without its pixels: a file that is cut off behind its header is not noticed."""
    with _open(path) as image:
        orientation(image)
        return image


@_value_errors()
def upright_rgb(image: Image.Image) -> Image.Image:
    """An image in RGB, as its EXIF tag wants it to be shown.

    Raises:
        ValueError: Pillow cannot convert it.
    """
    return _upright(image).convert("RGB")


def orientation(image: Image.Image) -> int:
    """The EXIF tag's value; 1, "as it is", if there is none that can be read (detectron2 takes it so, too)."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # Pillow's parser raises anything
        return 1


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
    except (ValueError, OSError):  # simplejpeg's at the first oddity, and Pillow's
        return None


@_value_errors()
def _is_plain(data: bytes) -> bool:
    with Image.open(io.BytesIO(data), formats=["JPEG"]) as header:  # reads no pixels
        as_it_is = header.getexif().get(ExifTags.Base.Orientation, 1) == 1
        return as_it_is and header.format == "JPEG" and header.mode in ("RGB", "L")


def _open(path: str | os.PathLike) -> Image.Image:
    if not os.path.isfile(path):  # reading a pipe would wait for ever
        raise ValueError("not a file")
    Image.init()
    return Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN])


def _upright(image: Image.Image) -> Image.Image:
    turn = _TURNS.get(orientation(image))
    return image if turn is None else image.transpose(turn)


def _local_path(path: str | os.PathLike) -> str:
    path = os.fspath(path)
    if "://" not in path:
        return path
    from detectron2.utils.file_io import PathManager  # needs torch

    return PathManager.get_local_path(path)
