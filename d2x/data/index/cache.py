"""Cached index of a COCO json: read from the cache if nothing changed since, else made anew and kept there."""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path

from iopath.common.file_io import file_lock
from portalocker import LockException

from d2x.atomic_files import cache_dir
from d2x.data.index.clean_copy import clean_members, cleaning_of, write_members
from d2x.data.index.coco_index import CocoIndex, DamagedIndexError
from d2x.data.index.json_stream import read_members
from d2x.data.index.scan import LISTS, Scan, scan_coco

logger = logging.getLogger(__name__)

# Smaller files are read anew each time: that takes no second, and no check is ever skipped.
KEEP_FROM_BYTES = 4 << 20
_WHOLE_UP_TO = 64 << 20  # bytes; of a larger file only samples are hashed
_SAMPLE, _SAMPLES = 1 << 16, 64


def open_index(
    json_file: str, image_root: str, *, need_images: bool = True, keep_from: int = KEEP_FROM_BYTES
) -> CocoIndex:
    """The index of a json; what was left out is logged each time.

    Its header has ``categories``, ``json_file`` (one that detectron2 and pycocotools can read: the given one or, if it
    had to be cleaned, a copy in the cache folder), ``summary`` of what was left out (or empty), and ``folders``.

    A kept index is used if path, size, time of change and content (of files above 64 MB: of samples) of the json are
    those it was made from, and none of the image folders has changed.

    Args:
        need_images: leave out images whose file is missing.
        keep_from: jsons of at least so many bytes have their index kept.

    Raises:
        FileNotFoundError: json or image folder does not exist.
        ValueError: see ``read_members`` and ``Scan.require_usable``.
    """
    if not os.path.isfile(json_file):
        raise FileNotFoundError(f"annotation file not found: {json_file}")
    if not os.path.isdir(image_root):
        raise FileNotFoundError(f"image folder not found: {image_root} (images of {json_file})")
    if os.path.getsize(json_file) < keep_from:
        index = _make(json_file, image_root, need_images, content_key(json_file))
    else:
        index = _kept(json_file, image_root, need_images)
    if index.header["summary"]:
        logger.warning(index.header["summary"])
    return index


def content_key(json_file: str) -> str:
    """Changes when the file does: a hash of its size, time of change and content, or samples of it."""
    status = os.stat(json_file)
    digest = hashlib.sha256(f"{status.st_size} {status.st_mtime_ns} ".encode())
    with open(json_file, "rb") as file:
        if status.st_size <= _WHOLE_UP_TO:
            digest.update(file.read())
        else:
            for number in range(_SAMPLES):
                file.seek((status.st_size - _SAMPLE) * number // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()


def index_path(json_file: str, image_root: str, need_images: bool = True) -> Path:
    """Where the index of these files is kept."""
    identity = json.dumps([os.path.realpath(json_file), os.path.realpath(image_root), need_images])
    name = f"{Path(json_file).stem}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.safetensors"
    return cache_dir() / "index" / name


def _kept(json_file: str, image_root: str, need_images: bool) -> CocoIndex:
    path, key = index_path(json_file, image_root, need_images), content_key(json_file)
    with _alone(path):  # other processes of the same job wait for the one that makes it
        index = _read(path, key)
        if index is not None:
            return index
        index = _make(json_file, image_root, need_images, key)
        try:
            index.save(path)
        except OSError as error:
            logger.warning("%s: the index could not be kept, it is made anew at each start (%s)", path, error)
            return index
    logger.info("%s: %d images; index kept in %s", json_file, len(index), path)
    return CocoIndex.open(path)  # mapped: shared with other processes


def _read(path: Path, key: str) -> CocoIndex | None:
    try:
        index = CocoIndex.open(path)
    except FileNotFoundError:
        return None
    except DamagedIndexError as error:
        logger.warning("%s: the kept index cannot be used and is made anew (%s)", path, error)
        return None
    header = index.header
    if header["key"] != key or not os.path.exists(header["json_file"]):
        return None
    if any(_changed(folder) != changed for folder, changed in header["folders"].items()):
        logger.info("%s: an image folder has changed since, so the index is made anew", path)
        return None
    return index


def _make(json_file: str, image_root: str, need_images: bool, key: str) -> CocoIndex:
    scan = scan_coco(read_members(json_file, LISTS), json_file, image_root, need_images=need_images)
    scan.require_usable()
    usable = json_file if scan.usable_as_it_is or not need_images else str(_write_copy(scan, key))
    folders = {folder: _changed(folder) for folder in scan.folders}
    summary = scan.problems.summary() if scan.problems else ""
    return CocoIndex.from_scan(scan, key=key, json_file=usable, summary=summary, folders=folders)


def _write_copy(scan: Scan, key: str) -> Path:
    kept = scan.keep_images.tobytes() + scan.annotations.keep.tobytes()
    digest = hashlib.sha256(key.encode() + kept).hexdigest()[:16]
    copy = cache_dir() / "cleaned" / f"{Path(scan.json_file).stem}-{digest}.json"
    if not copy.exists():
        try:
            write_members(clean_members(read_members(scan.json_file, LISTS), cleaning_of(scan)), copy)
        except OSError as error:
            raise ValueError(
                f"{scan.json_file} needs cleaning, and the copy cannot be written ({error}); the environment variable"
                " D2X_CACHE says where to"
            ) from error
    return copy


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Only one process at a time; if the folder cannot be written, there is nothing to wait for."""
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(file_lock(str(path)))
        except (OSError, LockException) as error:
            logger.info("%s: no lock (%s)", path, error)
        yield


def _changed(folder: str) -> int:
    """When a file was last added to or taken from a folder, ns; 0 if it is not there."""
    try:
        return os.stat(folder or ".").st_mtime_ns
    except OSError:
        return 0
