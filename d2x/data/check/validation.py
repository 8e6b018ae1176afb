"""Checks a COCO json before anything relies on it: bad records are reported and left out, the file stays as it is."""

import os
from collections.abc import Collection, Iterable, Iterator

from d2x.data.check.clean_copy import clean_members, cleaning_of, gather
from d2x.data.index.json_stream import Member, iterate_members, read_members
from d2x.data.index.scan import LISTS, Scan, scan_coco
from d2x.data.rules.image_files import ImageFiles
from d2x.data.rules.problems import Problems
from d2x.data.rules.record_rules import box_fault, outline_faults

__all__ = ["box_fault", "clean_coco_json", "image_files_for", "read_coco_json", "require_usable"]

# Up to this many images, each is decoded when the data set is checked; in larger ones a broken file shows in training.
DECODE_UP_TO = 64


def read_coco_json(json_file: str | os.PathLike, *, annotation_keys: Collection[str] | None = None) -> dict:
    """Parse a COCO json and check its outline.

    Args:
        annotation_keys: keep only these of each annotation; COCO's outlines take four fifths of its memory.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not valid json (for instance truncated), not a json object, ``images`` or ``categories`` missing or
            empty, or a category without id or name, or with one that another has.
    """
    json_file = os.fspath(json_file)
    members = read_members(json_file, LISTS)
    content = gather(members if annotation_keys is None else _trimmed(members, set(annotation_keys)))
    lengths = {key: len(value) if isinstance(value, list) else None for key, value in content.items()}
    faults = outline_faults(lengths, content["categories"] if lengths.get("categories") else [])
    if faults:
        raise ValueError(f"{json_file}: {faults[0]}")
    return content


def clean_coco_json(content: dict, json_file: str, image_root: str) -> tuple[dict, Problems]:
    """Leave out what is bad (see ``scan_coco``) and fill in what COCO's evaluation needs (see ``clean_members``).

    Args:
        content: from ``read_coco_json``; not changed.
        json_file: named in messages.
        image_root: folder that the file names are relative to.

    Returns:
        The cleaned content (equal to ``content`` when there was nothing to do), and what was left out.

    Raises:
        ValueError: no image or no annotation is left.
    """
    scan = scan_coco(iterate_members(content, LISTS), json_file, image_root, files_for=image_files_for)
    require_usable(scan)
    return gather(clean_members(iterate_members(content, LISTS), cleaning_of(scan))), scan.problems


def image_files_for(count: int) -> ImageFiles:
    """What judges the files of a data set of so many images."""
    return ImageFiles(decode=count <= DECODE_UP_TO)


def require_usable(scan: Scan) -> None:
    """
    Raises:
        ValueError: the outline or a category is wrong, or no image or annotation is left.
    """
    if scan.faults:
        raise ValueError(f"{scan.json_file}: {scan.faults[0]}")
    if not len(scan.images):
        raise ValueError(f"no usable image in {scan.image_root}; {scan.problems.summary()}")
    # A json without the key describes a test set that nobody may evaluate on.
    if scan.annotations is not None and not scan.annotations.keep.any():
        detail = scan.problems.summary() if scan.problems else f"{scan.json_file}: the data set has no annotations"
        raise ValueError(f"no usable annotation; {detail}")


def _trimmed(members: Iterable[Member], keys: set[str]) -> Iterator[Member]:
    for member in members:
        if member.key == "annotations" and isinstance(member.value, dict):
            yield member._replace(value={key: value for key, value in member.value.items() if key in keys})
        else:
            yield member
