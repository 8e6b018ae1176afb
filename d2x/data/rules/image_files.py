"""Rules for image files: there, decodable, as large as recorded; and what tells two of them apart."""

import contextlib
import hashlib
import os
from typing import NamedTuple

import numpy as np
from PIL import Image

from d2x.data.images import decode, orientation, read_header, upright_rgb
from d2x.data.rules import problems as kinds

_LOOK = 8  # the look is compared on a grid of 8 x 8
# Up to this many images, each is decoded when the data set is checked; in larger ones a broken file shows in training.
DECODE_UP_TO = 64


class ImageFiles:
    """Judges image files; lists every folder once, which on a network drive is far quicker than asking for each file.

    Args:
        count: of files; if they are few, each is decoded, otherwise only its name is looked for.
    """

    def __init__(self, count: int):
        self._decode = count <= DECODE_UP_TO
        self._names: dict[str, set[str]] = {}

    def fault(self, path: str) -> str:
        """The kind of what is wrong with a file; empty if nothing is."""
        folder, name = os.path.split(path)
        if folder not in self._names:
            self._names[folder] = set()
            with contextlib.suppress(OSError):  # no such folder, or one that may not be listed
                self._names[folder].update(os.listdir(folder or "."))
        if name not in self._names[folder] and not os.path.isfile(path):  # a file system may ignore case
            return kinds.FILE_MISSING
        if self._decode:
            try:
                decode(path)
            except ValueError:
                return kinds.FILE_UNREADABLE
        return ""

    @property
    def folders(self) -> list[str]:
        """Those that were listed."""
        return sorted(self._names)


class ImageFacts(NamedTuple):
    """What is known of an image file.

    Attributes:
        fault: the kind of what is wrong with it, empty if nothing is; ``detail`` says more.
        file_hash, pixel_hash: of its bytes, and of its size and RGB pixels as training sees them; empty if not made.
        look: 64 bits that stay nearly the same when it is scaled or saved with another quality; None if it has none
            (a plain area), or was not made.
    """

    fault: str
    detail: str = ""
    file_hash: bytes = b""
    pixel_hash: bytes = b""
    look: int | None = None


def inspect_image(path: str, width: int, height: int, *, decode_pixels: bool = True) -> ImageFacts:
    """Find what is wrong with an image file for which (width, height), px, are recorded; never raises.

    A file is judged as training reads it: turned by its EXIF tag, as RGB.

    Args:
        decode_pixels: False reads the header only: a truncated file is not found, and ``pixel_hash`` not made.
    """
    if not os.path.lexists(path):
        return ImageFacts(kinds.FILE_MISSING)
    try:
        file_hash = _hash_file(path)
        image = decode(path) if decode_pixels else read_header(path)
        own = image.size
        turned = orientation(image) in (5, 6, 7, 8)
        seen = own[::-1] if turned else own
        if seen != (width, height):
            kind = kinds.FILE_TURNED if turned and own == (width, height) else kinds.FILE_OTHER_SIZE
            return ImageFacts(kind, f"file {seen[0]} x {seen[1]}, recorded {width} x {height}", file_hash)
        if not decode_pixels:
            return ImageFacts("", file_hash=file_hash)
        pixels = upright_rgb(image)
    except (ValueError, OSError) as error:
        return ImageFacts(kinds.FILE_UNREADABLE, " ".join(str(error).split())[:200])
    return ImageFacts("", "", file_hash, _hash_pixels(pixels), _look(pixels))


def _hash_file(path: str) -> bytes:
    if not os.path.isfile(path):
        raise ValueError("not a file")
    if not os.path.getsize(path):
        raise ValueError("the file is empty")
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.digest()


def _hash_pixels(image: Image.Image) -> bytes:
    return hashlib.blake2b(repr(image.size).encode() + image.tobytes(), digest_size=16).digest()


def _look(image: Image.Image) -> int | None:
    """Which of neighbouring areas is the brighter one, as bits ("dHash")."""
    small = image.convert("L").resize((_LOOK + 1, _LOOK), Image.Resampling.BOX)
    grey = np.asarray(small, dtype=np.int16)
    if np.ptp(grey) < 8:
        return None
    bits = np.packbits(grey[:, 1:] > grey[:, :-1])
    return int.from_bytes(bits.tobytes(), "big")
