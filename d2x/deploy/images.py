"""Images for checking and calibrating: files, folders, or a registered data set. No torch here."""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def find_images(inputs: Sequence[str | Path], also: Collection[str] = ()) -> list[Path]:
    """Image files, folders expanded.

    Args:
        also: suffixes of other files that may be named; a folder gives its images only.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: a folder without images, or a file of another kind; names it.
    """
    known = SUFFIXES.union(also)
    found: list[Path] = []
    for item in map(Path, inputs):
        if item.is_dir():
            inside = sorted(path for path in item.iterdir() if path.suffix.lower() in SUFFIXES)
            if not inside:
                raise ValueError(f"no images in folder {item}")
            found += inside
        elif not item.exists():
            raise FileNotFoundError(f"input not found: {item}")
        elif item.suffix.lower() in known:
            found.append(item)
        else:
            raise ValueError(f"{item}: not a kind of file that is read ({', '.join(sorted(known))})")
    return found


def read_image(path: str | Path, channels: str = "RGB") -> np.ndarray:
    """(H, W, 3) uint8, turned as the file says, channels "RGB" or "BGR".

    Raises:
        ValueError: not a readable image; names the file.
    """
    try:
        with Image.open(path) as file:
            image = np.asarray(ImageOps.exif_transpose(file).convert("RGB"))
    except Exception as error:  # Pillow's decoders raise anything from OSError to SyntaxError and struct.error
        raise ValueError(f"{path}: cannot be read as an image ({' '.join(str(error).split())})") from error
    return np.ascontiguousarray(image[..., ::-1]) if channels == "BGR" else image
