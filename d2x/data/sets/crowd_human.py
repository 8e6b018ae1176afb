"""CrowdHuman (arXiv:1805.00123): ``.odgt``, one json object per line."""

import json
import os

from d2x.data.rules.problems import Problems
from d2x.data.rules.record_rules import box_numbers, record_id
from d2x.data.sets.records import add_box, finish, image_size, make_record, read_lines, reading, require_folder

BOXES = {"visible": "vbox", "full": "fbox", "head": "hbox"}


def read_crowd_human(
    annotation_file: str | os.PathLike,
    image_root: str | os.PathLike,
    *,
    boxes: str = "visible",
    ignore_regions: bool = True,
    keep_empty: bool = True,
) -> list[dict]:
    """Records of an annotation file; every box is of class 0, "person".

    Boxes are clipped to the image; those not wider and higher than 1 px are left out. ``image_id`` is the file's "ID".

    Args:
        annotation_file: lines ``{"ID": ..., "gtboxes": [{"tag", "vbox", "fbox", "hbox", "extra"}, ...]}``, boxes as
            (x, y, w, h) px.
        image_root: folder of ``<ID>.jpg``; each is opened for its size.
        boxes: "visible", "full" or "head".
        ignore_regions: mark boxes of tag "mask" and those with ``extra.ignore`` as ``iscrowd``. False, as in the
            released reader: the former are left out and the latter are persons like any other.
        keep_empty: keep images without a box; False as in the released reader.

    Raises:
        FileNotFoundError: file or folder missing.
        ValueError: nothing usable in it. A few bad lines, boxes or images are reported and left out.
    """
    annotation_file, image_root = os.fspath(annotation_file), os.fspath(image_root)
    lines = read_lines(annotation_file)
    require_folder(image_root, annotation_file)
    if boxes not in BOXES:
        raise ValueError(f"CrowdHuman has no boxes '{boxes}', only {', '.join(BOXES)}")
    problems, records = Problems(annotation_file), []
    for number, line in enumerate(reading(lines, annotation_file), start=1):
        where = f"line {number}"
        try:
            content = json.loads(line)
            image_id, objects = content["ID"], content["gtboxes"]
            if record_id(image_id) is None or not isinstance(objects, list):
                raise TypeError
        except (ValueError, KeyError, TypeError, RecursionError):
            problems.add("lines that are not json with 'ID' and 'gtboxes'", where)
            continue
        path = os.path.join(image_root, f"{image_id}.jpg")
        try:
            record = make_record(path, image_id, image_size(path))
        except ValueError as error:
            problems.add(str(error), f"{where}, {path}")
            continue
        for annotation in objects:
            fault = _add(record, annotation, BOXES[boxes], ignore_regions)
            if fault:
                problems.add(fault, where)
        if record["annotations"] or keep_empty:
            records.append(record)
    return finish(records, problems)


def _add(record: dict, annotation: dict, key: str, ignore_regions: bool) -> str:
    if not isinstance(annotation, dict):
        return f"annotations without four numbers in '{key}'"
    extra = annotation.get("extra")
    ignored = annotation.get("tag") != "person" or (isinstance(extra, dict) and bool(extra.get("ignore", 0)))
    if annotation.get("tag") != "person" and not (ignore_regions and annotation.get("tag") == "mask"):
        return ""
    box = box_numbers(annotation.get(key))
    if box is None:
        return f"annotations without four numbers in '{key}'"
    x, y, w, h = box
    return add_box(record, 0, (x, y, x + w, y + h), crowd=ignored and ignore_regions)
