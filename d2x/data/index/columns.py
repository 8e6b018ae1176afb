"""The records of a COCO json as columns: what its annotations say, with the ids they name still unresolved."""

from array import array
from typing import Any, NamedTuple

import numpy as np

from d2x.data.index.json_stream import Member
from d2x.data.rules import problems as kinds
from d2x.data.rules.record_rules import box_numbers, has, image_fault, is_area, is_crowd, record_id

LISTS = ("images", "annotations")  # read element by element
NO_ID = np.iinfo(np.int64).min
NEEDED = ("image_id", "category_id", "bbox")
NOT_NUMBERS = len(NEEDED) + 1  # values of the column "fault": 0 none, 1.. a needed key is missing, then this
_COLUMNS = {"fault": "b", "image": "i", "category": "i", "crowd": "B", "id": "q", "box": "d"}


class ImageRecord(NamedTuple):
    """An image record that is right by itself; ``width`` and ``height`` in px."""

    id: int | str
    file_name: str
    width: int
    height: int


class BadImage(NamedTuple):
    """Another one: the kind of what is wrong, its name for messages, and its id if it has one."""

    fault: str
    name: str
    id: int | str | None


class Columns:
    """Takes the members of a json in any order; nothing is resolved before all are there."""

    def __init__(self, listed: int):
        self.lengths: dict[str, int | None] = {}  # of the list under each key of the object; None for other values
        self.categories: list = []
        self.images: list[ImageRecord | BadImage] = []
        self.image_refs: dict[int | str, int] = {}  # id that annotations name -> number in the column "image"
        self.category_refs: dict[int | str, int] = {}
        self.columns = {name: array(kind) for name, kind in _COLUMNS.items()}
        self.odd_values: dict[int, str] = {}  # by position, of the first annotations whose bbox is not four numbers
        self.complete = True
        self.bad_fields, self.bad_field_names = 0, []
        self._listed = listed

    def add(self, member: Member) -> None:
        key, position, value = member
        if position >= 0:
            self.lengths[key] = position + 1
            (self._add_annotation if key == "annotations" else self._add_image)(position, value)
            return
        self.lengths[key] = len(value) if isinstance(value, list) else None
        if key == "categories" and isinstance(value, list):
            self.categories = value

    def _add_image(self, position: int, image: Any) -> None:
        fault = image_fault(image)
        if fault:
            record = image if isinstance(image, dict) else {}
            label = f"image {record.get('file_name', position)}"
            more = f", id {record.get('id')}" if fault == kinds.IMAGE_BAD_ID else ""
            self.images.append(BadImage(fault, label + more, record_id(record.get("id"))))
        else:
            own_id, size = record_id(image["id"]), (int(image["width"]), int(image["height"]))
            assert own_id is not None
            self.images.append(ImageRecord(own_id, image["file_name"], *size))

    def _add_annotation(self, position: int, annotation: Any) -> None:
        image, category, box, crowd = -1, -1, None, 0
        fault = _absent(annotation)
        if not fault:
            image = _refer(self.image_refs, annotation["image_id"])
            category = _refer(self.category_refs, annotation["category_id"])
            box = box_numbers(annotation["bbox"])
            crowd = self._crowd(position, annotation)
            if box is None:
                fault = NOT_NUMBERS
                if len(self.odd_values) < self._listed:
                    self.odd_values[position] = str(annotation["bbox"])[:100]
        columns = self.columns
        columns["fault"].append(fault)
        columns["image"].append(image)
        columns["category"].append(category)
        columns["crowd"].append(crowd)
        columns["id"].append(_own_id(annotation))
        columns["box"].extend(box or (0.0, 0.0, 0.0, 0.0))

    def _crowd(self, position: int, annotation: dict) -> int:
        crowd, area = annotation.get("iscrowd"), annotation.get("area")
        if crowd in (0, 1) and is_area(area) and "ignore" not in annotation:
            return int(crowd)
        self.complete = False
        judged = is_crowd(annotation)
        if judged is None or (area is not None and not is_area(area)):
            self.bad_fields += 1
            if len(self.bad_field_names) < self._listed:
                self.bad_field_names.append(f"annotation {annotation.get('id', position)}")
        return int(bool(judged))


def _absent(annotation: object) -> int:
    """The fault code of the first key that is not there; 0 if all are."""
    if isinstance(annotation, dict):
        get = annotation.get
        if get("image_id") is not None and get("category_id") is not None and get("bbox") is not None:
            return 0
    return next(code for code, key in enumerate(NEEDED, start=1) if not has(annotation, key))


def _refer(refs: dict[int | str, int], raw: object) -> int:
    key = record_id(raw)
    return -1 if key is None else refs.setdefault(key, len(refs))


def _own_id(annotation: object) -> int:
    own = annotation.get("id") if isinstance(annotation, dict) else None
    return own if type(own) is int and NO_ID < own < -NO_ID else NO_ID
