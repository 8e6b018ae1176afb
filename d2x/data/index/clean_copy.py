"""Clean copy of a COCO json, without what is wrong with it."""

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from d2x.atomic_files import atomic_cache_write
from d2x.data.index.json_stream import Member
from d2x.data.index.scan import LISTS, Scan
from d2x.data.rules.record_rules import is_area, is_crowd


@dataclass
class Cleaning:
    """What a clean copy keeps and changes.

    Attributes:
        keep_images, keep_annotations: bool, by position in the json.
        renumber: give annotations the ids 1, 2, ...
        moved: image id -> the one that its annotations go to.
        clip_to: image id -> (width, height), to which its boxes are clipped.
    """

    keep_images: np.ndarray
    keep_annotations: np.ndarray
    renumber: bool
    moved: dict = field(default_factory=dict)
    clip_to: dict = field(default_factory=dict)


def cleaning_of(scan: Scan) -> Cleaning:
    """Leave out what the scan found unusable."""
    return Cleaning(scan.keep_images, scan.annotations.keep, scan.renumber)


def clean_members(members: Iterable[Member], cleaning: Cleaning) -> Iterator[Member]:
    """Members of the clean copy: what is left, in the same order, with what COCO's evaluation needs filled in.

    Annotations get ``iscrowd`` (0 or 1) and ``area`` if these are missing or no numbers, and lose ``ignore``, which
    becomes ``iscrowd``. There is an ``info``. Everything else stays as it is.
    """
    keep = {"images": cleaning.keep_images, "annotations": cleaning.keep_annotations}
    has_info, written = False, 0
    for member in members:
        key, position, value = member
        has_info |= key == "info"
        if position < 0:
            yield member
        elif keep[key][position]:
            if key == "annotations":
                written += 1
                value = _cleaned(value, cleaning, written)
            yield Member(key, position, value)
    if not has_info:
        yield Member("info", -1, {})


def write_members(members: Iterable[Member], path: Path) -> None:
    """Write a json file, one record a line; complete or not at all."""
    pieces = _pieces(members)
    with atomic_cache_write(path) as file:
        for text in iter(lambda: "".join(itertools.islice(pieces, 1000)), ""):
            file.write(text.encode())


def _pieces(members: Iterable[Member]) -> Iterator[str]:
    """The text of a json object, piece by piece; a list that is read by elements comes first as an empty one."""
    separator, list_is_open, first = "", False, True
    yield "{"
    for key, position, value in members:
        if position >= 0:
            yield f"{'' if first else ','}\n{json.dumps(value)}"
            first = False
            continue
        yield ("\n]" if list_is_open else "") + f"{separator}\n{json.dumps(key)}: "
        separator, list_is_open, first = ",", value == [] and key in LISTS, True
        yield "[" if list_is_open else json.dumps(value)
    yield "\n]\n}\n" if list_is_open else "\n}\n"


def _cleaned(annotation: dict, cleaning: Cleaning, number: int) -> dict:
    """With all that is needed; the same object if nothing was to do."""
    changes = {}
    if annotation.get("iscrowd") not in (0, 1) or "ignore" in annotation:
        changes["iscrowd"] = int(bool(is_crowd(annotation)))
    image_id = annotation["image_id"]
    if image_id in cleaning.moved:
        changes["image_id"] = cleaning.moved[image_id]
    if image_id in cleaning.clip_to:
        changes |= _clipped(annotation, *cleaning.clip_to[image_id])
    w, h = annotation["bbox"][2:]
    if not is_area(annotation.get("area")) or ("bbox" in changes and annotation["area"] == w * h):
        w, h = changes.get("bbox", annotation["bbox"])[2:]
        changes["area"] = w * h
    if cleaning.renumber:
        changes["id"] = number
    return (
        {key: value for key, value in {**annotation, **changes}.items() if key != "ignore"} if changes else annotation
    )


def _clipped(annotation: dict, width: int, height: int) -> dict:
    x, y, w, h = map(float, annotation["bbox"])
    x0, y0, x1, y1 = max(x, 0.0), max(y, 0.0), min(x + w, width), min(y + h, height)
    clipped = [x0, y0, x1 - x0, y1 - y0]
    return {"bbox": clipped} if clipped != [x, y, w, h] else {}
