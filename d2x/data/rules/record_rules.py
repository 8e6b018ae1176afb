"""Rules for the records of a COCO json."""

import math
from typing import Any

from d2x.data.rules import problems as kinds

_LARGEST_ID = 2**63 - 1
_LARGEST_SIDE = 2**31 - 1
_NUMBERS = frozenset({int, float})  # by type(), so that true and false are none
INFINITY = math.inf


def record_id(value: Any) -> int | str | None:
    """An id as ids are compared: an integer (3.0 is 3) or a text; None for what cannot be one."""
    kind = type(value)
    if kind is str:
        return value
    if kind is float and value.is_integer():
        value, kind = int(value), int
    return value if kind is int and -_LARGEST_ID <= value <= _LARGEST_ID else None


def image_fault(image: Any) -> str:
    """The kind of what is wrong with an image record by itself; empty if nothing is."""
    for key in ("id", "file_name", "width", "height"):
        if not has(image, key):
            return f"{kinds.IMAGE_NOT_A_RECORD}{key}"
    if record_id(image["id"]) is None:
        return kinds.IMAGE_BAD_ID
    name = image["file_name"]
    if type(name) is not str or not name.strip() or "\0" in name:
        return kinds.IMAGE_BAD_NAME
    if not all(is_number(side) and 0 < side <= _LARGEST_SIDE and side == int(side) for side in image_size(image)):
        return kinds.IMAGE_BAD_SIZE
    return ""


def image_size(image: dict) -> tuple[float, float]:
    """(width, height) as recorded, px."""
    return image["width"], image["height"]


def box_numbers(box: Any) -> tuple[float, float, float, float] | None:
    """The four numbers of a box as floats (too large ones as infinity), or None if it is not four numbers."""
    if type(box) not in (list, tuple) or len(box) != 4:
        return None
    x, y, w, h = box
    if type(x) in _NUMBERS and type(y) in _NUMBERS and type(w) in _NUMBERS and type(h) in _NUMBERS:
        return _as_float(x), _as_float(y), _as_float(w), _as_float(h)
    return None


def box_rules(x, y, w, h, width, height):
    """Which rules an (x, y, w, h) box, px, breaks in an image of a size: (not finite, empty, outside).

    Works on floats and on arrays of them; each rule expects that the ones before it are met.
    """
    finite = (abs(x) < INFINITY) & (abs(y) < INFINITY) & (abs(w) < INFINITY) & (abs(h) < INFINITY)
    outside = (x >= width) | (y >= height) | (x + w <= 0) | (y + h <= 0)
    return finite == False, (w <= 0) | (h <= 0), outside  # noqa: E712  (`not` takes no array)


def outline_faults(lengths: dict[str, int | None], categories: list) -> list[str]:
    """Why a COCO json cannot be used at all; empty if it can.

    Args:
        lengths: of the list under each key of the object, None for what is no list.
        categories: its categories.
    """
    found = []
    for key in ("images", "categories"):
        if key not in lengths:
            found.append(f"key '{key}' is missing")
        elif not lengths[key]:
            found.append(f"'{key}' is empty or not a list")
    if lengths.get("annotations", 0) is None:
        found.append("'annotations' is not a list")
    return found + judge_categories(categories)[1]


def judge_categories(categories: list) -> tuple[list[dict], list[str]]:
    """(usable ones, one text for each other one); a file with one that is not usable cannot be trained on."""
    good, faults, ids, names = [], [], set(), set()
    for position, category in enumerate(categories):
        if not (has(category, "id") and has(category, "name")):
            faults.append(f"category {position} has no 'id' or no 'name'")
            continue
        number, name = category["id"], category["name"]
        if type(record_id(number)) is not int or not _is_name(name):
            faults.append(
                f"category {position}: the id must be an integer and the name a text, got {str(category)[:200]}"
            )
        elif number in ids or name in names:
            faults.append(f"category {position}: id {number} or name '{name}' is used twice")
        else:
            good.append(category)
            ids.add(number)
            names.add(name)
    return good, faults


def is_crowd(annotation: dict) -> bool | None:
    """Whether an annotation marks a crowd (``iscrowd``, or the older ``ignore``); None if what it says is no number."""
    flags = [annotation[key] for key in ("iscrowd", "ignore") if annotation.get(key) is not None]
    return any(flags) if all(type(flag) is bool or is_number(flag) for flag in flags) else None


def is_area(value: Any) -> bool:
    return is_number(value) and value >= 0


def is_number(value: Any) -> bool:
    """A finite one."""
    return type(value) in _NUMBERS and abs(_as_float(value)) < INFINITY


def has(record: Any, key: str) -> bool:
    return isinstance(record, dict) and record.get(key) is not None


def _as_float(value: int | float) -> float:
    try:
        return float(value)
    except OverflowError:
        return INFINITY if value > 0 else -INFINITY


def _is_name(name: Any) -> bool:
    try:
        return type(name) is str and bool(name.strip()) and bool(name.encode())
    except UnicodeEncodeError:  # half of a surrogate pair: no log or config file could hold it
        return False
