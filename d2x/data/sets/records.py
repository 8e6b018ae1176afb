"""Record helpers of the annotation readers: one record per image, bad ones reported with a count and left out."""

import logging
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from tqdm import tqdm

from d2x.data.images import read_size
from d2x.data.rules import problems as kinds
from d2x.data.rules.problems import Problems

logger = logging.getLogger(__name__)


def read_lines(path: str | os.PathLike) -> list[str]:
    """Lines of a text file without line ends; trailing empty ones are dropped.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a text file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"annotation file not found: {path}")
    try:
        return path.read_text(encoding="utf-8").rstrip().splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a text file: {error}") from error


def is_registered(name: str, identity: tuple) -> bool:
    """Whether a data set is registered; ``identity`` is what it was made from, its metadata's ``registered_from``.

    Raises:
        ValueError: it was made from something else.
    """
    if name not in DatasetCatalog:
        return False
    if MetadataCatalog.get(name).get("registered_from") != identity:
        raise ValueError(f"data set name '{name}' is already in use for something other than {identity}")
    return True


def require_folder(path: str | os.PathLike, annotations: str | os.PathLike) -> None:
    """Raises ``FileNotFoundError`` naming the folder that should hold the images of an annotation file."""
    if not os.path.isdir(path):
        raise FileNotFoundError(f"image folder not found: {path} (images of {annotations})")


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """(height, width) from a file's header.

    Raises:
        ValueError: missing or no image; the message is a reason for ``Problems``.
    """
    try:
        return read_size(path)
    except FileNotFoundError as error:
        raise ValueError(kinds.FILE_MISSING) from error
    except ValueError as error:
        raise ValueError(kinds.FILE_UNREADABLE) from error


def make_record(file_name: str | os.PathLike, image_id: str | int, size: tuple[int, int]) -> dict:
    """A record in detectron2's format, without annotations; ``size`` is (height, width)."""
    return {
        "file_name": os.fspath(file_name),
        "image_id": image_id,
        "height": size[0],
        "width": size[1],
        "annotations": [],
    }


def add_box(
    record: dict,
    category_id: int,
    box: Sequence[float],
    *,
    clip: bool = True,
    least_side: float = 1.0,
    crowd: bool = False,
) -> str:
    """Append a box to a record, unless nothing usable is left of it.

    Args:
        box: xyxy px.
        clip: to the image. Without it any four finite numbers are taken.
        least_side: with ``clip``, width and height must be greater afterwards; px.
        crowd: marks a region that evaluation ignores and training leaves out (COCO's ``iscrowd``).

    Returns:
        Why the box was left out, as a reason for ``Problems``; empty if it was not, or is merely too small.
    """
    box = [float(value) for value in box]
    if not all(map(math.isfinite, box)):
        return "annotations with NaN or infinity in the bbox"
    if clip:
        x0, y0, x1, y1 = box
        if x1 < x0 or y1 < y0:
            return "annotations with negative size"
        x0, x1 = (min(max(x, 0.0), record["width"]) for x in (x0, x1))
        y0, y1 = (min(max(y, 0.0), record["height"]) for y in (y0, y1))
        box = [x0, y0, x1, y1]
        if x1 - x0 <= least_side or y1 - y0 <= least_side:
            return ""
    annotation = {"category_id": category_id, "bbox": box, "bbox_mode": BoxMode.XYXY_ABS}
    if crowd:
        annotation["iscrowd"] = 1
    record["annotations"].append(annotation)
    return ""


def reading(items: Iterable, source: str | os.PathLike) -> Iterable:
    """A progress bar around a loop over annotations, when it takes longer than a few seconds."""
    return tqdm(items, desc=f"read {Path(source).name}", unit="image", delay=3, leave=False)


def finish(records: list[dict], problems: Problems) -> list[dict]:
    """Report what was left out, once.

    Raises:
        ValueError: no record is left.
    """
    if problems:
        logger.warning(problems.summary())
    if not records:
        detail = problems.summary() if problems else f"{problems.source}: the data set is empty"
        raise ValueError(f"no usable image; {detail}")
    return records
