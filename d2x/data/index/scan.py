"""Scan of a COCO json in one pass: every record is judged, and what can be used is kept as columns, not dicts."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from d2x.data.index.columns import LISTS, NEEDED, NO_ID, NOT_NUMBERS, BadImage, Columns, ImageRecord
from d2x.data.index.json_stream import Member
from d2x.data.rules import problems as kinds
from d2x.data.rules.image_files import ImageFiles
from d2x.data.rules.problems import Problems
from d2x.data.rules.record_rules import box_rules, judge_categories, outline_faults

_UNKNOWN, _LEFT_OUT = -1, -2

__all__ = ["LISTS", "NO_ID", "Annotations", "Images", "Scan", "scan_coco"]


@dataclass
class Images:
    """Usable image records, in the order of their ids.

    Attributes:
        ids: integers, or all texts.
        position: (M,) int64, where in the json they are.
        width, height: (M,) int32, px.
    """

    ids: list
    file_names: list[str]
    position: np.ndarray
    width: np.ndarray
    height: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)


@dataclass
class Annotations:
    """All annotations in the json's order, usable or not.

    Attributes:
        image: (A,) int32 into ``Images``; negative if it is not there.
        category: (A,) int32 contiguous category; negative if it is not there.
        boxes: (A, 4) float64 (x, y, w, h), px; zeros if the bbox is not four numbers.
        crowd: (A,) uint8.
        ids: (A,) int64, ``NO_ID`` if it is no integer.
        keep: (A,) bool, the usable ones.
    """

    image: np.ndarray
    category: np.ndarray
    boxes: np.ndarray
    crowd: np.ndarray
    ids: np.ndarray
    keep: np.ndarray

    def name(self, position: int) -> str:
        return f"annotation {self.ids[position] if self.ids[position] != NO_ID else position}"


@dataclass
class Scan:
    """What a COCO json holds.

    Attributes:
        faults: why the file cannot be used at all; empty if it can.
        categories: the usable ones, in the order of their ids.
        labelled: there is a list of annotations, even an empty one.
        keep_images: (all image records,) bool.
        problems: what is left out, and why.
        notes: what is kept and yet odd.
        renumber: annotation ids must be given anew for COCO's evaluation.
        complete: no other key must be filled in for COCO's evaluation.
        folders: in which image files were looked for.
    """

    json_file: str
    image_root: str
    faults: list[str]
    categories: list[dict]
    images: Images
    annotations: Annotations
    labelled: bool
    keep_images: np.ndarray
    problems: Problems
    notes: Problems
    renumber: bool
    complete: bool
    folders: list[str]

    @property
    def usable_as_it_is(self) -> bool:
        """detectron2 and pycocotools can read the file itself."""
        return not self.problems and self.complete and not self.renumber

    def require_usable(self) -> None:
        """
        Raises:
            ValueError: the outline or a category is wrong, or no image or annotation is left.
        """
        if self.faults:
            raise ValueError(f"{self.json_file}: {self.faults[0]}")
        if not len(self.images):
            raise ValueError(f"no usable image in {self.image_root}; {self.problems.summary()}")
        # A json without the key describes a test set that nobody may evaluate on.
        if self.labelled and not self.annotations.keep.any():
            detail = self.problems.summary() if self.problems else f"{self.json_file}: the data set has no annotations"
            raise ValueError(f"no usable annotation; {detail}")


def scan_coco(
    members: Iterable[Member],
    json_file: str,
    image_root: str,
    *,
    need_images: bool = False,
    listed: int = 4,
) -> Scan:
    """Judge a COCO json.

    Left out is: an image record without id, file_name, width or height (positive integers), with another's id, or
    whose file is not there; an annotation without image_id, category_id or bbox, for an image or category that is not
    there, or whose box (x, y, w, h; px) is not four finite numbers, has no size or lies wholly outside its image.

    Args:
        members: from ``read_members(json_file, LISTS)``.
        json_file: named in messages.
        image_root: folder that the file names are relative to.
        need_images: look for the image files (see ``ImageFiles``); False takes them to be there.
        listed: so many records of each kind of problem are remembered.

    Raises:
        ValueError: what ``members`` raises.
    """
    reader = Columns(listed)
    for member in members:
        reader.add(member)
    problems, notes = Problems(json_file, listed), Problems(json_file, listed)
    if reader.bad_fields:
        notes.add_many(kinds.ANNOTATION_BAD_FIELDS, reader.bad_fields, ((name, {}) for name in reader.bad_field_names))
    files = ImageFiles(len(reader.images)) if need_images else None
    images, keep_images, left_out = _usable_images(reader, json_file, image_root, files, problems)
    categories = sorted(judge_categories(reader.categories)[0], key=lambda category: category["id"])
    annotations = _judge_annotations(reader, images, left_out, categories, problems, notes)
    ids = annotations.ids[annotations.keep]
    return Scan(
        json_file=json_file,
        image_root=image_root,
        faults=outline_faults(reader.lengths, reader.categories),
        categories=categories,
        images=images,
        annotations=annotations,
        labelled=reader.lengths.get("annotations") is not None,
        keep_images=keep_images,
        problems=problems,
        notes=notes,
        renumber=bool(np.isin(ids, (NO_ID, 0)).any() or len(np.unique(ids)) < len(ids)),
        complete=reader.complete and "info" in reader.lengths,
        folders=files.folders if files else [],
    )


def _usable_images(
    reader: Columns, json_file: str, image_root: str, files: ImageFiles | None, problems: Problems
) -> tuple[Images, np.ndarray, set]:
    """(usable images, (all,) bool which they are, ids that only unusable ones have)."""
    kept: dict[int | str, tuple[int, ImageRecord]] = {}  # by id: its position, and the record
    bar = tqdm(reader.images, desc=f"files of {Path(json_file).name}", unit="image", delay=3, leave=False)
    for position, image in enumerate(bar if files else reader.images):
        if isinstance(image, BadImage):
            problems.add(image.fault, image.name, position=position)
            continue
        name = f"image {image.file_name}"
        of_another_kind = bool(kept) and type(image.id) is not type(next(iter(kept)))
        if image.id in kept or of_another_kind:
            problems.add(kinds.IMAGE_BAD_ID, f"{name}, id {image.id}", position=position)
        elif files and (fault := files.fault(os.path.join(image_root, image.file_name))):
            problems.add(fault, name, position=position)
        else:
            kept[image.id] = position, image
    left_out = {image.id for image in reader.images} - set(kept)
    keep = np.zeros(len(reader.images), dtype=bool)
    ids = sorted(kept)
    positions, records = [kept[i][0] for i in ids], [kept[i][1] for i in ids]
    keep[positions] = True
    images = Images(
        ids=ids,
        file_names=[image.file_name for image in records],
        position=np.array(positions, dtype=np.int64),
        width=np.array([image.width for image in records], dtype=np.int32),
        height=np.array([image.height for image in records], dtype=np.int32),
    )
    return images, keep, left_out


def _judge_annotations(
    reader: Columns, images: Images, left_out: set, categories: list[dict], problems: Problems, notes: Problems
) -> Annotations:
    columns = {name: np.asarray(column) for name, column in reader.columns.items()}
    fault, boxes = columns["fault"], columns["box"].reshape(-1, 4)
    index = {number: i for i, number in enumerate(images.ids)}
    image = _resolve(reader.image_refs, columns["image"], index, left_out)
    category = _resolve(reader.category_refs, columns["category"], {c["id"]: i for i, c in enumerate(categories)})
    found = Annotations(image, category, boxes, columns["crowd"], columns["id"], keep=np.ones(len(fault), dtype=bool))

    def leave_out(broken: np.ndarray, kind: str, more=lambda position: "", to: Problems = problems) -> None:
        to.add_where(kind, broken & found.keep, lambda i: found.name(i) + more(i))
        found.keep &= ~broken

    for code, key in enumerate(NEEDED, start=1):
        leave_out(fault == code, f"{kinds.ANNOTATION_NOT_A_RECORD}{key}")
    leave_out(image == _LEFT_OUT, kinds.OF_LEFT_OUT_IMAGES, to=notes)
    raw = list(reader.image_refs)
    leave_out(image < 0, kinds.UNKNOWN_IMAGE, lambda i: f", image id {_raw(raw, int(columns['image'][i]))}")
    raw_category = list(reader.category_refs)
    leave_out(
        category < 0,
        kinds.UNKNOWN_CATEGORY,
        lambda i: f", category id {_raw(raw_category, int(columns['category'][i]))}",
    )
    leave_out(
        fault == NOT_NUMBERS, f"annotations {kinds.BOX_NOT_NUMBERS}", lambda i: f", bbox {reader.odd_values.get(i)}"
    )
    with np.errstate(invalid="ignore", over="ignore"):
        x, y, w, h = boxes.T
        width, height = (
            np.append(side, [0, 0])[image]
            for side in (images.width, images.height)  # negative ones: left out already
        )
        broken = box_rules(x, y, w, h, width, height)
    for kind, which in zip(kinds.BOX_KINDS, broken):
        leave_out(which, f"annotations {kind}", lambda i: f", bbox {boxes[i].tolist()}")
    return found


def _resolve(refs: dict, column: np.ndarray, index: dict, left_out: Iterable = ()) -> np.ndarray:
    """(A,) int32: what each annotation's reference stands for."""
    left_out = set(left_out)
    table = [index.get(key, _LEFT_OUT if key in left_out else _UNKNOWN) for key in refs]
    return np.array([*table, _UNKNOWN], dtype=np.int32)[column]  # reference -1 is the last one


def _raw(names: list, reference: int) -> object:
    return names[reference] if reference >= 0 else "that is neither an integer nor a text"
