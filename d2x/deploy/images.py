"""Images for checking and calibrating: files, folders, or a registered data set. No torch here."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}


def find_images(inputs: Sequence[str | Path]) -> list[Path]:
    """Image files, folders expanded.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: a folder without images, or a file of another kind; names it.
    """
    found: list[Path] = []
    for item in map(Path, inputs):
        if item.is_dir():
            inside = sorted(path for path in item.iterdir() if path.suffix.lower() in SUFFIXES)
            if not inside:
                raise ValueError(f"no images in folder {item}")
            found += inside
        elif not item.exists():
            raise FileNotFoundError(f"input not found: {item}")
        elif item.suffix.lower() in SUFFIXES:
            found.append(item)
        else:
            raise ValueError(f"{item}: not an image ({', '.join(sorted(SUFFIXES))})")
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
