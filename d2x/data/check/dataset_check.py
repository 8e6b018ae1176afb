"""Check of a data set, or of a training and a validation set together."""

import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import partial

import numpy as np
from tqdm import tqdm

from d2x.data.check.oddities import bad_ids, note_oddities, partly_outside, repeated, same_file
from d2x.data.index.clean_copy import Cleaning
from d2x.data.index.json_stream import read_members
from d2x.data.index.scan import LISTS, Annotations, Images, Scan, scan_coco
from d2x.data.rules import problems as kinds
from d2x.data.rules.image_files import ImageFacts, inspect_image
from d2x.data.rules.problems import Problems

_CHUNK = 16  # images that a process is handed at a time


@dataclass
class CheckedSet:
    """A data set and what is wrong with it.

    Attributes:
        scan: its usable records, images with a bad file left out; ``scan.faults`` if there is nothing to use.
        facts: of each usable image's file, in the scan's order.
        problems: all that was found.
    """

    scan: Scan
    facts: list[ImageFacts]
    problems: Problems

    @property
    def usable(self) -> bool:
        scan = self.scan
        return not scan.faults and len(scan.images) > 0 and (not scan.labelled or bool(scan.annotations.keep.any()))

    @property
    def clean(self) -> bool:
        """Neither errors nor warnings."""
        return self.usable and all(kinds.severity(kind) == "note" for kind in self.problems.found)


def check_set(json_file: str, image_root: str, *, jobs: int = 1, decode: bool = True, listed: int = 1000) -> CheckedSet:
    """Check a COCO json and its images.

    Args:
        jobs: processes that decode images.
        decode: read the files' pixels; otherwise only headers.
        listed: so many records of each kind of problem are kept; all are counted.

    Raises:
        FileNotFoundError: json or folder missing.
        ValueError: the json cannot be parsed, or a process died on an image.
    """
    members = read_members(json_file, LISTS)
    if not os.path.isdir(image_root):
        raise FileNotFoundError(f"image folder not found: {image_root} (images of {json_file})")
    scan = scan_coco(members, json_file, image_root, listed=listed)
    problems = scan.problems
    for kind, entry in scan.notes.found.items():
        problems.add_many(kind, entry.count, ((record.pop("record"), record) for record in entry.records))
    facts = []
    for fact, name in zip(_inspect(scan, jobs, decode), scan.images.file_names):
        if fact.fault:
            problems.add(fact.fault, f"image {name}", **({"detail": fact.detail} if fact.detail else {}))
        facts.append(fact)
    good = np.array([not fact.fault for fact in facts], dtype=bool)
    _keep_images(scan, good)
    facts = [fact for fact in facts if not fact.fault]
    note_oddities(scan, same_file(scan.images), problems)
    _note_same_content(scan.images, facts, problems)
    return CheckedSet(scan, facts, problems)


def find_leaks(train: CheckedSet, val: CheckedSet, *, near: int | None = None) -> np.ndarray:
    """Which training images are validation images too; added to the training set's problems.

    Args:
        near: also note images whose looks differ in at most so many of 64 bits.

    Returns:
        (M,) bool of the training set's usable images: same file or same pixels, not merely a similar look.
    """
    by_hash = {}
    for name, fact in zip(val.scan.images.file_names, val.facts):
        for number in (fact.pixel_hash, fact.file_hash):
            if number:
                by_hash.setdefault(number, name)
    leaks = np.zeros(len(train.facts), dtype=bool)
    for i, (name, fact) in enumerate(zip(train.scan.images.file_names, train.facts)):
        for kind, number in ((kinds.LEAK_BYTES, fact.file_hash), (kinds.LEAK_PIXELS, fact.pixel_hash)):
            if number in by_hash:
                train.problems.add(kind, f"image {name}, validation image {by_hash[number]}")
                leaks[i] = True
                break
    if near is not None:
        _note_similar(train, val, near, leaks)
    return leaks


def make_cleaning(checked: CheckedSet, leaks: np.ndarray | None = None) -> Cleaning:
    """What a copy must leave out and change to be without errors and warnings.

    Records of the same file become one, annotations that are repeated or of an image in ``leaks`` are left out, boxes
    are clipped where one reaches out of its image.
    """
    scan, images, found = checked.scan, checked.scan.images, checked.scan.annotations
    first = same_file(images)
    same_size = (images.width == images.width[first]) & (images.height == images.height[first])
    own = first == np.arange(len(images))
    used = (own | same_size) & ~(leaks if leaks is not None else np.zeros(len(images), dtype=bool))
    keep_images = np.zeros_like(scan.keep_images)
    keep_images[images.position[own & used]] = True
    moved = {images.ids[i]: images.ids[first[i]] for i in np.flatnonzero(used & ~own)}
    keep = found.keep.copy()
    keep[keep] = used[found.image[keep]]
    kept = Annotations(found.image, found.category, found.boxes.copy(), found.crowd, found.ids, keep)
    clipped = np.unique(found.image[partly_outside(kept, images)])
    clip_to = {images.ids[i]: (int(images.width[i]), int(images.height[i])) for i in clipped.tolist()}
    _clip(kept, images, clipped)  # clipped boxes may be equal
    keep &= ~repeated(kept, first)
    return Cleaning(keep_images, keep, bool(bad_ids(kept).any()), moved, clip_to)


def _inspect(scan: Scan, jobs: int, decode: bool) -> Iterator[ImageFacts]:
    images = scan.images
    paths = [os.path.join(scan.image_root, name) for name in images.file_names]
    inspect = partial(inspect_image, decode_pixels=decode)
    arguments = (paths, images.width.tolist(), images.height.tolist())
    bar = partial(tqdm, total=len(paths), desc=f"images of {os.path.basename(scan.json_file)}", unit="image")
    if jobs <= 1:
        yield from bar(map(inspect, *arguments))
        return
    # Started anew, not forked: a fork takes over locks that threads of this process may hold.
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        try:
            yield from bar(pool.map(inspect, *arguments, chunksize=_CHUNK))
        except BrokenProcessPool as error:
            raise ValueError(
                f"{scan.json_file}: a process that decodes images died (memory?); use fewer jobs"
            ) from error


def _keep_images(scan: Scan, good: np.ndarray) -> None:
    """Leave the images out of a scan that are not ``good`` (M,), and their annotations."""
    images, found = scan.images, scan.annotations
    scan.keep_images[images.position[~good]] = False
    number = np.where(good, np.cumsum(good) - 1, -1).astype(np.int32)
    left_out = found.keep.copy()
    left_out[found.keep] = ~good[found.image[found.keep]]
    scan.problems.add_where(kinds.OF_LEFT_OUT_IMAGES, left_out, found.name)
    found.keep &= ~left_out
    found.image[found.keep] = number[found.image[found.keep]]
    found.image[~found.keep] = -1
    chosen = np.flatnonzero(good)
    scan.images = Images(
        ids=[images.ids[i] for i in chosen],
        file_names=[images.file_names[i] for i in chosen],
        position=images.position[good],
        width=images.width[good],
        height=images.height[good],
    )


def _clip(found: Annotations, images: Images, of_images: np.ndarray) -> None:
    which = found.keep & np.isin(found.image, of_images)
    size = np.stack([images.width, images.height], axis=1)[found.image[which]]
    start, end = found.boxes[which, :2], found.boxes[which, :2] + found.boxes[which, 2:]
    start, end = np.maximum(start, 0.0), np.minimum(end, size)
    found.boxes[which] = np.concatenate([start, end - start], axis=1)


def _note_same_content(images: Images, facts: list[ImageFacts], problems: Problems) -> None:
    first: dict[bytes, str] = {}
    for name, fact in zip(images.file_names, facts):
        number = fact.pixel_hash or fact.file_hash
        other = first.setdefault(number, name)
        if os.path.normpath(other) != os.path.normpath(name):
            problems.add(kinds.CONTENT_REPEATED, f"image {name}, the same as {other}")


def _note_similar(train: CheckedSet, val: CheckedSet, near: int, leaks: np.ndarray) -> None:
    looks = [(fact.look, name) for fact, name in zip(val.facts, val.scan.images.file_names) if fact.look is not None]
    if not looks:
        return
    theirs = np.array([look for look, _ in looks], dtype=np.uint64)[:, None].view(np.uint8)  # (V, 8)
    pairs = zip(train.facts, train.scan.images.file_names, leaks)
    for fact, name, leak in tqdm(pairs, total=len(leaks), desc="compare looks", unit="image", delay=3, leave=False):
        if fact.look is None or leak:
            continue
        own = np.array([[fact.look]], dtype=np.uint64).view(np.uint8)
        differing = _BITS[own ^ theirs].sum(axis=1)
        closest = int(differing.argmin())
        if differing[closest] <= near:
            other = f"validation image {looks[closest][1]}"
            train.problems.add(kinds.LEAK_NEAR, f"image {name}, {other}, {differing[closest]} of 64 bits")


_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1)  # how many bits a byte has
