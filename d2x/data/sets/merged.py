"""Several data sets as one: labelled for different classes, or not labelled at all."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from d2x.data.images import SUFFIXES
from d2x.data.sets.records import is_registered
from d2x.data.sets.registered_coco import read_records

logger = logging.getLogger(__name__)


def register_merged(name: str, sources: Sequence[str], classes: Sequence[str]) -> str:
    """Register the union of data sets that are labelled for different classes.

    Classes are matched by name. Every record carries ``labelled_classes``: the contiguous ids, in the merged list, of
    the classes its source is labelled for (the source's ``labelled_classes``, else all its classes); objects of other
    classes may be there without a box, so the boxes that a source does have of them are left out too. An image file
    that several sources have becomes one record with the labels of all; if two of them are labelled for the same
    class, the first one's boxes of that class are taken.

    Loading is lazy: sources are read when the merged one is.

    Args:
        name: of the merged data set.
        sources: names of registered data sets; image folders of ``register_image_folder`` among them are fine.
        classes: the merged class list. Boxes of other classes are left out; a class that no source is labelled for is
            reported (a teacher may supply it).

    Raises:
        ValueError: unknown or no source, repeated or no class, or the name is already another data set's.
    """
    sources, classes = list(sources), list(classes)
    if not sources or not classes:
        raise ValueError(f"data set '{name}': needs at least one source and one class")
    if len(set(classes)) < len(classes):
        raise ValueError(f"data set '{name}': a class is named twice in {classes}")
    for source in sources:
        if source not in DatasetCatalog:
            raise ValueError(f"data set '{name}': unknown source '{source}'")
    identity = ("merged", tuple(sources), tuple(classes))
    if is_registered(name, identity):
        return name
    MetadataCatalog.get(name).set(thing_classes=classes, evaluator_type="coco", registered_from=identity)
    DatasetCatalog.register(name, lambda: _merge(name, sources, classes))
    return name


def register_image_folder(name: str, folder: str | Sequence[str]) -> str:
    """Register the images in one or several folders, subfolders included, as a data set without any label.

    Records have empty ``annotations`` and ``labelled_classes``; ``DATALOADER.FILTER_EMPTY_ANNOTATIONS`` must be False,
    else detectron2 drops them all.

    Raises:
        FileNotFoundError: a folder does not exist.
        ValueError: there is no image in them, or the name is already another data set's.
    """
    folders = [folder] if isinstance(folder, (str, os.PathLike)) else list(folder)
    for path in folders:
        if not os.path.isdir(path):
            raise FileNotFoundError(f"image folder not found: {path} (data set '{name}')")
    identity = ("image folders", *map(os.path.abspath, folders))
    if is_registered(name, identity):
        return name
    MetadataCatalog.get(name).set(labelled_classes=[], registered_from=identity)
    DatasetCatalog.register(name, lambda: _list_images(name, folders))
    return name


def _list_images(name: str, folders: Sequence[str]) -> list[dict]:
    files = [
        path
        for folder in folders
        for path in sorted(Path(folder).rglob("*"))
        if path.suffix.lower() in SUFFIXES and path.is_file()
    ]
    if not files:
        raise ValueError(f"no image in {', '.join(map(str, folders))} (data set '{name}')")
    return [
        {"file_name": str(path), "image_id": number, "annotations": [], "labelled_classes": [], "dataset_name": name}
        for number, path in enumerate(files, start=1)
    ]


def _merge(name: str, sources: Sequence[str], classes: Sequence[str]) -> list[dict]:
    index_of = {class_name: index for index, class_name in enumerate(classes)}
    merged: dict[str, dict] = {}
    labelled_somewhere: set[int] = set()
    for source in sources:
        records = read_records(source)
        metadata = MetadataCatalog.get(source)
        source_classes = list(metadata.get("thing_classes", []))
        to_merged = {i: index_of[c] for i, c in enumerate(source_classes) if c in index_of}
        for record in records:
            labelled = record.get("labelled_classes")
            if labelled is None:
                labelled = metadata.get("labelled_classes")
            if labelled is None:
                labelled = range(len(source_classes))
            its_classes = {to_merged[i] for i in labelled if i in to_merged}
            labelled_somewhere |= its_classes
            _add(merged, record, to_merged, its_classes)
    for index in sorted(set(range(len(classes))) - labelled_somewhere):
        logger.warning("data set '%s': no source is labelled for class '%s'", name, classes[index])
    return [
        {**record, "image_id": number, "dataset_name": name} for number, record in enumerate(merged.values(), start=1)
    ]


def _add(merged: dict[str, dict], record: dict, to_merged: dict[int, int], labelled: set[int]) -> None:
    """Add a source's record under its file's path, in the merged class ids."""
    key = os.path.realpath(record["file_name"])
    target = merged.setdefault(key, {**record, "annotations": [], "labelled_classes": []})
    fresh = labelled - set(target["labelled_classes"])
    target["labelled_classes"] = sorted(fresh | set(target["labelled_classes"]))
    for annotation in record.get("annotations", []):
        category = to_merged.get(annotation["category_id"])
        if category in fresh:
            target["annotations"].append({**annotation, "category_id": category})
