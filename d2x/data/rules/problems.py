"""Kinds of data-set problems, how grave they are, and the list of those in a file."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

_EXAMPLES = 3
_LONGEST = 200

# Left out of training and evaluation.
IMAGE_NOT_A_RECORD = "image records without "
IMAGE_BAD_ID = "image records with an unusable or repeated id"
IMAGE_BAD_NAME = "image records with an unusable file_name"
IMAGE_BAD_SIZE = "image records with a bad width or height"
FILE_MISSING = "image files missing"
FILE_UNREADABLE = "image files that cannot be read"
FILE_OTHER_SIZE = "image files of another size than recorded"
FILE_TURNED = "image files that their EXIF tag turns, recorded as before the turn"
UNKNOWN_IMAGE = "annotations of an unknown image id"
UNKNOWN_CATEGORY = "annotations with an unknown category id"
ANNOTATION_NOT_A_RECORD = "annotations without "
BOX_NOT_NUMBERS = "whose bbox is not four numbers"
BOX_NOT_FINITE = "with NaN or infinity in the bbox"
BOX_EMPTY = "with zero or negative size"
BOX_OUTSIDE = "wholly outside the image"
BOX_KINDS = (BOX_NOT_FINITE, BOX_EMPTY, BOX_OUTSIDE)  # in the order of ``record_rules.box_rules``

# Kept in training, but probably not what was meant.
BOX_PARTLY_OUTSIDE = "annotations partly outside the image"
ANNOTATION_BAD_ID = "annotations whose id is missing, repeated, 0 or no integer"
ANNOTATION_REPEATED = "annotations repeated: same image, category and box"
ANNOTATION_BAD_FIELDS = "annotations whose iscrowd or area is unusable"
NAME_REPEATED = "image records with another's file_name"
LEAK_BYTES = "training images that are validation images: same file"
LEAK_PIXELS = "training images that are validation images: same pixels"

# Worth knowing.
IMAGE_EMPTY = "images without annotations"
CROWD = "annotations that mark a crowd (iscrowd)"
CATEGORY_UNUSED = "categories without annotations"
CONTENT_REPEATED = "images with the content of another one"
LEAK_NEAR = "training images that look like validation images"
OF_LEFT_OUT_IMAGES = "annotations of images that are left out"

_WARNINGS = {
    BOX_PARTLY_OUTSIDE,
    ANNOTATION_BAD_ID,
    ANNOTATION_REPEATED,
    ANNOTATION_BAD_FIELDS,
    NAME_REPEATED,
    LEAK_BYTES,
    LEAK_PIXELS,
}
_NOTES = {IMAGE_EMPTY, CROWD, CATEGORY_UNUSED, CONTENT_REPEATED, LEAK_NEAR, OF_LEFT_OUT_IMAGES}


def severity(kind: str) -> str:
    """``error``: what has it is left out; ``warning``: kept, probably wrong; ``note``: worth knowing."""
    return "warning" if kind in _WARNINGS else "note" if kind in _NOTES else "error"


@dataclass
class Found:
    """One kind of problem: how often, and its first records, each as ``{"record": text, ...}``."""

    count: int = 0
    records: list[dict] = field(default_factory=list)


@dataclass
class Problems:
    """What was wrong with a file: for each kind, the records it concerns.

    Args:
        source: the file, named in messages.
        listed: so many records are remembered of a kind; all are counted.
    """

    source: str
    listed: int = _EXAMPLES + 1
    found: dict[str, Found] = field(default_factory=dict)

    def add(self, kind: str, record: str, **more: object) -> None:
        """One record; ``more`` (json values) goes into a report beside its name."""
        entry = self.found.setdefault(kind, Found())
        entry.count += 1
        if len(entry.records) < self.listed:
            entry.records.append({"record": _printable(record), **more})

    def add_many(self, kind: str, count: int, first: Iterable[tuple[str, dict]]) -> None:
        """``count`` records of a kind, of which ``first`` gives the first (name, more) pairs, lazily."""
        if not count:
            return
        before = self.found.get(kind, Found()).count
        for _, (record, more) in zip(range(min(count, self.listed)), first):
            self.add(kind, record, **more)
        self.found[kind].count = before + count

    def add_where(self, kind: str, which: np.ndarray, name: Callable[[int], str]) -> None:
        """The records at which ``which`` (N,) is true, by name and position."""
        positions = np.flatnonzero(which).tolist()
        self.add_many(kind, len(positions), ((name(i), {"position": i}) for i in positions))

    def count(self, kind: str) -> int:
        return self.found[kind].count if kind in self.found else 0

    def __len__(self) -> int:
        return sum(entry.count for entry in self.found.values())

    def summary(self) -> str:
        """One line: how many records, and for each kind its first few."""
        parts = [f"{entry.count} {kind} ({examples(entry)})" for kind, entry in self.found.items()]
        return f"{self.source}: skipped {len(self)} bad records: {'; '.join(parts)}"


def examples(entry: Found, most: int = _EXAMPLES) -> str:
    """The first few records of a kind in one line."""
    more: Sequence[str] = ["..."] if entry.count > most else []
    return ", ".join([*(record["record"] for record in entry.records[:most]), *more])


def _printable(text: str) -> str:
    """One line that any terminal and log file takes: json may hold line ends, escapes and lone surrogates."""
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
