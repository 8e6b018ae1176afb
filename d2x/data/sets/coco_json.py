"""A user's own COCO json and image folder as a detectron2 data set."""

import os

from detectron2.data import DatasetCatalog, MetadataCatalog

from d2x.data.index.cache import open_index
from d2x.data.index.coco_index import IndexedRecords
from d2x.data.sets.records import is_registered


def register_coco_json(name: str, json_file: str, image_root: str, *, labelled_classes: list[int] | None = None) -> str:
    """Register a COCO json; its classes become known at once, its records when they are first asked for.

    Bad records (see ``d2x.data.index.scan``) are reported here, once, and left out of training and evaluation alike:
    ``metadata.json_file`` then is a cleaned copy in the cache folder, ``metadata.source_json`` always the user's file.
    Records are ``IndexedRecords``; of a large json the index is kept in the cache folder for the next start.
    Registering the same files under the same name again does nothing.

    Args:
        name: for ``DATASETS.TRAIN`` / ``TEST``.
        json_file: COCO instances format. Class names are its categories' in the order of their ids.
        image_root: folder that its file names are relative to.
        labelled_classes: contiguous ids of the classes that are labelled in every image; None for all.

    Returns:
        The name.

    Raises:
        FileNotFoundError: json or folder does not exist.
        ValueError: the json is broken, nothing usable is in it, or the name is already another data set's.
    """
    json_file, image_root = os.fspath(json_file), os.fspath(image_root)
    identity = (os.path.abspath(json_file), os.path.abspath(image_root), labelled_classes)
    if is_registered(name, identity):
        return name
    index = open_index(json_file, image_root)
    metadata = MetadataCatalog.get(name)
    metadata.set(
        **index.class_metadata(),
        json_file=index.header["json_file"],
        source_json=json_file,
        image_root=image_root,
        evaluator_type="coco",
        indexed=True,
        registered_from=identity,
    )
    if labelled_classes is not None:
        metadata.labelled_classes = list(labelled_classes)
    DatasetCatalog.register(name, lambda: IndexedRecords(index, image_root, name))
    return name
