"""Data set of some classes of a COCO json."""

import os
from collections.abc import Sequence

import numpy as np

from d2x.data.index.json_stream import read_members
from d2x.data.index.scan import LISTS, scan_coco
from d2x.data.sets.records import add_box, finish, make_record, require_folder

IMAGES = ("every", "any", "all")


def read_coco_classes(
    json_file: str | os.PathLike,
    image_root: str | os.PathLike,
    classes: Sequence[str],
    *,
    images: str = "any",
    crowds_as_objects: bool = False,
    need_images: bool = True,
) -> list[dict]:
    """Records with the boxes of the named categories, numbered in the order of ``classes``; in the json's order.

    Boxes are clipped to the image; those not wider and higher than 1 px are left out.

    Args:
        classes: category names; an empty one takes a number and stands for nothing.
        images: "every" one of the json; those with a box of "any" of the classes; or, as in the released reader for two
            classes, those with an annotation of "all" (and a box).
        crowds_as_objects: take ``iscrowd`` regions as objects, as the released reader does, instead of marking them.
        need_images: the folder must exist; images are not opened.

    Raises:
        FileNotFoundError: json or folder missing.
        ValueError: broken json, a class it does not have, or no image left. Bad records are reported and left out.
    """
    json_file, image_root = os.fspath(json_file), os.fspath(image_root)
    if images not in IMAGES:
        raise ValueError(f"images must be one of {', '.join(IMAGES)}, got '{images}'")
    scan = scan_coco(read_members(json_file, LISTS), json_file, image_root)
    if scan.faults:
        raise ValueError(f"{json_file}: {scan.faults[0]}")
    if need_images:
        require_folder(image_root, json_file)
    own = {category["name"]: number for number, category in enumerate(scan.categories)}
    unknown = [name for name in classes if name and name not in own]
    if unknown:
        raise ValueError(f"{json_file}: no category {', '.join(unknown)}")
    numbers = {own[name]: number for number, name in enumerate(classes) if name}
    annotations = scan.annotations
    wanted: list[list[int]] = [[] for _ in range(len(scan.images))]  # by image, positions of annotations
    for position in np.flatnonzero(np.isin(annotations.category, list(numbers)) & (annotations.image >= 0)).tolist():
        wanted[annotations.image[position]].append(position)
    records = []
    for image in np.argsort(scan.images.position).tolist():
        height, width = int(scan.images.height[image]), int(scan.images.width[image])
        path = os.path.join(image_root, scan.images.file_names[image])
        record = make_record(path, scan.images.ids[image], (height, width))
        if images == "all" and {int(annotations.category[i]) for i in wanted[image]} != set(numbers):
            continue
        for position in wanted[image]:
            if annotations.keep[position]:
                x, y, w, h = annotations.boxes[position].tolist()
                crowd = bool(annotations.crowd[position]) and not crowds_as_objects
                add_box(record, numbers[int(annotations.category[position])], (x, y, x + w, y + h), crowd=crowd)
        if record["annotations"] or images == "every":
            records.append(record)
    return finish(records, scan.problems)
