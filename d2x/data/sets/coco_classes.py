"""Some classes of a COCO json as a data set of its own."""

import os
from collections import defaultdict
from collections.abc import Sequence

from d2x.data.check.validation import read_coco_json
from d2x.data.rules.problems import Problems
from d2x.data.rules.record_rules import box_fault
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
    """Records with the boxes of the named categories, numbered in the order of ``classes``.

    Boxes are clipped to the image; those not wider and higher than 1 px are left out.

    Args:
        classes: category names; an empty one takes a number and stands for nothing.
        images: "every" one of the json; those with a box of "any" of the classes; or, as in the released reader for two
            classes, those with an annotation of "all" (and a box).
        crowds_as_objects: take ``iscrowd`` regions as objects, as the released reader does, instead of marking them.
        need_images: the folder must exist; images are not opened.

    Raises:
        FileNotFoundError: json or folder missing.
        ValueError: broken json, a class it does not have, or no image left. Bad boxes are reported and left out.
    """
    json_file, image_root = os.fspath(json_file), os.fspath(image_root)
    if images not in IMAGES:
        raise ValueError(f"images must be one of {', '.join(IMAGES)}, got '{images}'")
    content = read_coco_json(json_file, annotation_keys=("id", "image_id", "category_id", "bbox", "iscrowd"))
    if need_images:
        require_folder(image_root, json_file)
    by_name = {category["name"]: category["id"] for category in content["categories"]}
    unknown = [name for name in classes if name and name not in by_name]
    if unknown:
        raise ValueError(f"{json_file}: no category {', '.join(unknown)}")
    numbers = {by_name[name]: number for number, name in enumerate(classes) if name}
    wanted = defaultdict(list)
    for annotation in content.get("annotations", []):
        if annotation.get("category_id") in numbers:
            wanted[annotation.get("image_id")].append(annotation)
    problems, records = Problems(json_file), []
    for image in content["images"]:
        try:
            path, size = os.path.join(image_root, image["file_name"]), (image["height"], image["width"])
            record = make_record(path, image["id"], size)
        except KeyError as error:
            problems.add(f"image records without {error}", f"image {image.get('id')}")
            continue
        annotations = wanted[image["id"]]
        if images == "all" and {one["category_id"] for one in annotations} != set(numbers):
            continue
        for one in annotations:
            fault = _add(record, numbers[one["category_id"]], one, crowds_as_objects)
            if fault:
                problems.add(f"annotations {fault}", f"annotation {one.get('id')}")
        if record["annotations"] or images == "every":
            records.append(record)
    return finish(records, problems)


def _add(record: dict, number: int, annotation: dict, crowds_as_objects: bool) -> str:
    box = annotation.get("bbox")
    fault = box_fault(box, record["width"], record["height"])
    if fault:
        return fault
    x, y, w, h = box
    crowd = bool(annotation.get("iscrowd", 0)) and not crowds_as_objects
    return add_box(record, number, (x, y, x + w, y + h), crowd=crowd)
