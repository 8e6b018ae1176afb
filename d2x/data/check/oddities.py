"""Oddities of a data set whose records are usable one by one; found in columns, without loops."""

import os

import numpy as np

from d2x.data.index.scan import NO_ID, Annotations, Images, Scan
from d2x.data.rules import problems as kinds
from d2x.data.rules.problems import Problems

# A box may reach this far out of its image, px: tools round, and training clips.
TOLERANCE = 1.0


def same_file(images: Images) -> np.ndarray:
    """(M,) for each image the first one of the same file name, itself if there is none before it."""
    first: dict[str, int] = {}
    names = (os.path.normpath(name) for name in images.file_names)
    return np.array([first.setdefault(name, i) for i, name in enumerate(names)], dtype=np.int64)


def partly_outside(annotations: Annotations, images: Images) -> np.ndarray:
    """(A,) bool: kept boxes that reach out of their image by more than ``TOLERANCE``."""
    result = np.zeros(len(annotations.keep), dtype=bool)
    kept = np.flatnonzero(annotations.keep)
    x, y, w, h = annotations.boxes[kept].T
    width, height = images.width[annotations.image[kept]], images.height[annotations.image[kept]]
    result[kept] = (x < -TOLERANCE) | (y < -TOLERANCE) | (x + w > width + TOLERANCE) | (y + h > height + TOLERANCE)
    return result


def bad_ids(annotations: Annotations) -> np.ndarray:
    """(A,) bool: kept annotations without an integer id, with the id 0 (for COCOeval "no match"), or another's id."""
    kept = np.flatnonzero(annotations.keep)
    ids = annotations.ids[kept]
    result = np.zeros(len(annotations.keep), dtype=bool)
    result[kept] = (ids == NO_ID) | (ids == 0) | _repeats(ids)
    return result


def repeated(annotations: Annotations, first_image: np.ndarray) -> np.ndarray:
    """(A,) bool: kept annotations with image, category and box of one before them; ``first_image`` (M,): whose image
    an image is."""
    kept = np.flatnonzero(annotations.keep)
    columns = [
        first_image[annotations.image[kept]],
        annotations.category[kept],
        annotations.crowd[kept],
        *annotations.boxes[kept].T,
    ]
    order = np.lexsort(columns[::-1])  # stable: the first one stays first
    same = np.ones(max(len(kept) - 1, 0), dtype=bool)
    for column in columns:
        same &= column[order[1:]] == column[order[:-1]]
    result = np.zeros(len(annotations.keep), dtype=bool)
    result[kept[order[1:][same]]] = True
    return result


def note_oddities(scan: Scan, first_image: np.ndarray, problems: Problems) -> None:
    """Add what is odd in the usable records of a scan; ``first_image`` from ``same_file``."""
    images, annotations = scan.images, scan.annotations
    again = np.flatnonzero(first_image != np.arange(len(images)))
    again_names = ((f"image {images.file_names[i]}, id {images.ids[i]}", {}) for i in again)
    problems.add_many(kinds.NAME_REPEATED, len(again), again_names)
    if not scan.labelled:
        return

    def add(which: np.ndarray, kind: str, with_box: bool = False) -> None:
        def more(i: int) -> str:
            if not with_box:
                return ""
            width, height = images.width[annotations.image[i]], images.height[annotations.image[i]]
            return f", bbox {annotations.boxes[i].tolist()}, image {width} x {height}"

        problems.add_where(kind, which, lambda i: annotations.name(i) + more(i))

    add(partly_outside(annotations, images), kinds.BOX_PARTLY_OUTSIDE, with_box=True)
    add(bad_ids(annotations), kinds.ANNOTATION_BAD_ID)
    add(repeated(annotations, first_image), kinds.ANNOTATION_REPEATED, with_box=True)
    add(annotations.keep & (annotations.crowd == 1), kinds.CROWD)
    empty = np.flatnonzero(np.bincount(annotations.image[annotations.keep], minlength=len(images)) == 0)
    problems.add_many(kinds.IMAGE_EMPTY, len(empty), ((f"image {images.file_names[i]}", {}) for i in empty))
    counts = np.bincount(annotations.category[annotations.keep], minlength=len(scan.categories))
    unused = [category["name"] for category, count in zip(scan.categories, counts) if not count]
    problems.add_many(kinds.CATEGORY_UNUSED, len(unused), ((f"category {name}", {}) for name in unused))


def _repeats(values: np.ndarray) -> np.ndarray:
    """(N,) bool: whether the value was there before."""
    _, first = np.unique(values, return_index=True)
    result = np.ones(len(values), dtype=bool)
    result[first] = False
    return result
