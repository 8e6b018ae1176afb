"""Checks a COCO json before anything relies on it: bad records are reported and left out, the file stays as it is."""

import hashlib
import json
import logging
import math
import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from d2x.data.cache import cache_dir, write_atomically

logger = logging.getLogger(__name__)

# Up to this many images, each is decoded when the data set is checked; in larger ones a broken file shows in training.
DECODE_UP_TO = 64
_EXAMPLES = 3


@dataclass
class Problems:
    """What was wrong with a file: for each reason, the records it concerns."""

    source: str
    found: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, reason: str, record: str) -> None:
        self.found[reason].append(record)

    def __len__(self) -> int:
        return sum(len(records) for records in self.found.values())

    def summary(self) -> str:
        """One line: how many records, and for each reason its first few."""
        parts = []
        for reason, records in self.found.items():
            more = ", ..." if len(records) > _EXAMPLES else ""
            parts.append(f"{len(records)} {reason} ({', '.join(records[:_EXAMPLES])}{more})")
        return f"{self.source}: skipped {len(self)} bad records: {'; '.join(parts)}"


def read_coco_json(json_file: str) -> dict:
    """Parse a COCO json and check its outline.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not valid json (for instance truncated), not a json object, ``images`` or ``categories`` missing or
            empty, or a category without id or name, or with one that another has.
    """
    if not os.path.isfile(json_file):
        raise FileNotFoundError(f"annotation file not found: {json_file}")
    try:
        with open(json_file, encoding="utf-8") as file:
            content = json.load(file)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{json_file} is not valid json (truncated?): {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{json_file}: expected an object with 'images', 'annotations' and 'categories'")
    for key in ("images", "categories"):
        if key not in content:
            raise ValueError(f"{json_file}: key '{key}' is missing")
        if not isinstance(content[key], list) or not content[key]:
            raise ValueError(f"{json_file}: '{key}' is empty or not a list")
    if not isinstance(content.get("annotations", []), list):
        raise ValueError(f"{json_file}: 'annotations' is not a list")
    _check_categories(json_file, content["categories"])
    return content


def clean_coco_json(content: dict, json_file: str, image_root: str) -> tuple[dict, Problems]:
    """Leave out what is bad and fill in what COCO's evaluation needs.

    Bad is: an image record without id, file_name, width or height, with another's id, or without a (readable) file;
    an annotation without image_id, category_id or bbox, for an image or category that is not there, or whose box
    (x, y, w, h; px) is not four finite numbers, has no size or lies wholly outside its image. Missing ``iscrowd`` and
    ``area`` are filled in, ``ignore`` becomes ``iscrowd``, and annotation ids are renumbered if they are missing,
    repeated, or 0 (which COCOeval takes for "no match").

    Args:
        content: from ``read_coco_json``; not changed.
        json_file: named in messages.
        image_root: folder that the file names are relative to.

    Returns:
        The cleaned content (equal to ``content`` when there was nothing to do), and what was left out.

    Raises:
        ValueError: no image or no annotation is left.
    """
    problems = Problems(json_file)
    images = _clean_images(content["images"], image_root, problems)
    if not images:
        raise ValueError(f"no usable image in {image_root}; {problems.summary()}")
    cleaned = {"info": {}, **content, "images": images}
    if "annotations" in content:  # a json without the key describes a test set that nobody may evaluate on
        cleaned["annotations"] = _clean_annotations(content, images, problems)
        if not cleaned["annotations"]:
            detail = problems.summary() if problems else f"{json_file}: the data set has no annotations"
            raise ValueError(f"no usable annotation; {detail}")
    return cleaned, problems


def checked_json(json_file: str, image_root: str) -> tuple[str, list[dict]]:
    """Check a COCO json; if it had to be cleaned, write the cleaned copy into the cache folder.

    Returns:
        Path of a json that detectron2 and pycocotools can read, and its categories in the order of their ids.

    Raises:
        FileNotFoundError: json or image folder does not exist.
        ValueError: see ``read_coco_json`` and ``clean_coco_json``.
    """
    content = read_coco_json(json_file)
    if not os.path.isdir(image_root):
        raise FileNotFoundError(f"image folder not found: {image_root} (images of {json_file})")
    cleaned, problems = clean_coco_json(content, json_file, image_root)
    if problems:
        logger.warning(problems.summary())
    categories = sorted(content["categories"], key=lambda category: category["id"])
    if cleaned == content:
        return json_file, categories
    text = json.dumps(cleaned)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    path = cache_dir() / "cleaned" / f"{Path(json_file).stem}-{digest}.json"
    if not path.exists():
        write_atomically(path, text)
    return str(path), categories


def _check_categories(json_file: str, categories: list) -> None:
    ids, names = set(), set()
    for position, category in enumerate(categories):
        where = f"{json_file}: category {position}"
        if not isinstance(category, dict) or "id" not in category or "name" not in category:
            raise ValueError(f"{where} has no 'id' or no 'name'")
        if not _is_integer(category["id"]) or not isinstance(category["name"], str) or not category["name"].strip():
            raise ValueError(f"{where}: the id must be an integer and the name a text, got {category}")
        if category["id"] in ids or category["name"] in names:
            raise ValueError(f"{where}: id {category['id']} or name '{category['name']}' is used twice")
        ids.add(category["id"])
        names.add(category["name"])


def _clean_images(images: list, image_root: str, problems: Problems) -> list[dict]:
    kept, ids = [], set()
    files = _Files(decode=len(images) <= DECODE_UP_TO)
    for position, image in enumerate(images):
        label = f"image {image.get('file_name', position) if isinstance(image, dict) else position}"
        missing = [key for key in ("id", "file_name", "width", "height") if not _has(image, key)]
        if missing:
            problems.add(f"image records without {missing[0]}", label)
        elif isinstance(image["id"], (list, dict)) or image["id"] in ids:
            problems.add("image records with an unusable or repeated id", f"{label}, id {image['id']}")
        elif not (_is_positive(image["width"]) and _is_positive(image["height"])):
            problems.add("image records with a bad width or height", label)
        elif fault := files.fault(os.path.join(image_root, str(image["file_name"]))):
            problems.add(fault, label)
        else:
            ids.add(image["id"])
            kept.append(image)
    return kept


def _clean_annotations(content: dict, images: list[dict], problems: Problems) -> list[dict]:
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    left_out = {image["id"] for image in content["images"] if _has(image, "id") and _hashable(image["id"])} - set(sizes)
    categories = {category["id"] for category in content["categories"]}
    kept = []
    for position, annotation in enumerate(content["annotations"]):
        label = f"annotation {annotation.get('id', position) if isinstance(annotation, dict) else position}"
        missing = [key for key in ("image_id", "category_id", "bbox") if not _has(annotation, key)]
        if missing:
            problems.add(f"annotations without {missing[0]}", label)
            continue
        image_id, category_id, box = (annotation[key] for key in ("image_id", "category_id", "bbox"))
        if _hashable(image_id) and image_id in left_out:
            continue  # reported with its image
        if not _hashable(image_id) or image_id not in sizes:
            problems.add("annotations of an unknown image id", f"{label}, image id {image_id}")
        elif not _hashable(category_id) or category_id not in categories:
            problems.add("annotations with an unknown category id", f"{label}, category id {category_id}")
        elif fault := box_fault(box, *sizes[image_id]):
            problems.add(f"annotations {fault}", f"{label}, bbox {box}")
        else:
            kept.append(_completed(annotation))
    ids = [annotation.get("id") for annotation in kept]
    if not all(_is_integer(i) and i != 0 for i in ids) or len(set(ids)) < len(ids):
        kept = [{**annotation, "id": number} for number, annotation in enumerate(kept, start=1)]
    return kept


def box_fault(box: object, width: float, height: float) -> str:
    """What is wrong with an (x, y, w, h) box, px, in an image of that size; empty if nothing is."""
    numbers = isinstance(box, (list, tuple)) and all(_is_number(value) for value in box)
    if not numbers or len(box) != 4:
        return "whose bbox is not four numbers"
    if not all(math.isfinite(value) for value in box):
        return "with NaN or infinity in the bbox"
    x, y, w, h = box
    if w <= 0 or h <= 0:
        return "with zero or negative size"
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        return "wholly outside the image"
    return ""


def _completed(annotation: dict) -> dict:
    """With ``iscrowd`` and ``area``, without ``ignore``; the same object if nothing was to do."""
    if "iscrowd" in annotation and "area" in annotation and "ignore" not in annotation:
        return annotation
    completed = {key: value for key, value in annotation.items() if key != "ignore"}
    completed["iscrowd"] = int(bool(annotation.get("iscrowd", 0) or annotation.get("ignore", 0)))
    completed.setdefault("area", annotation["bbox"][2] * annotation["bbox"][3])
    return completed


class _Files:
    """Which image files are there; lists every folder once, which on a network drive is far quicker than asking."""

    def __init__(self, decode: bool):
        self._decode = decode
        self._folders: dict[str, set[str]] = {}

    def fault(self, path: str) -> str:
        folder, name = os.path.split(path)
        if folder not in self._folders:
            self._folders[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in self._folders[folder] and not os.path.isfile(path):  # a file system may ignore case
            return "image files missing"
        if self._decode:
            try:
                with Image.open(path) as image:
                    image.load()
            except Exception:  # Pillow's decoders raise anything from OSError to SyntaxError and struct.error
                return "image files that cannot be read"
        return ""


def _has(record: object, key: str) -> bool:
    return isinstance(record, dict) and record.get(key) is not None


def _hashable(value: object) -> bool:
    return not isinstance(value, (list, dict))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive(value: object) -> bool:
    return _is_number(value) and math.isfinite(value) and value > 0
