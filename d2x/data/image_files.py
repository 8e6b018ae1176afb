"""Whether image files are there and can be decoded."""

import contextlib
import os
import warnings
from pathlib import Path

from PIL import Image

from d2x.data import problems as kinds


class ImageFiles:
    """Judges image files; lists every folder once, which on a network drive is far quicker than asking for each file.

    Args:
        decode: whether to decode each file; otherwise only its name is looked for.
    """

    def __init__(self, *, decode: bool):
        self._decode = decode
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


def decode(path: str | os.PathLike) -> Image.Image:
    """An image file, wholly read (the first one of several in it); not turned by its EXIF tag.

    Raises:
        ValueError: it is not there, is no image, is cut off, or has so many pixels that Pillow suspects an attack.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd metadata; and many pixels, which are an error at twice as many
            with Image.open(Path(path)) as image:
                image.load()
                return image
    except Exception as error:  # Pillow's decoders raise anything from OSError to SyntaxError and struct.error
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
