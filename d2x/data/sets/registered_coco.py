"""Data sets that detectron2's ``register_coco_instances`` has registered, COCO itself among them, through our index.

detectron2's reader makes a Python object of every number in the json and of every annotation. Instead of replacing it
in the catalogue, the places here that need all records of a data set ask this module for them.
"""

import os
from collections.abc import Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from d2x.data.index.cache import open_index
from d2x.data.index.coco_index import IndexedRecords

WHERE = (
    "detectron2 looks for its own data sets below the environment variable DETECTRON2_DATASETS, by default ./datasets"
)


def has_index(name: str) -> bool:
    """Whether the records of a registered data set are ``IndexedRecords``."""
    return bool(MetadataCatalog.get(name).get("indexed")) or _is_coco_json(name)


def read_records(name: str) -> Sequence[dict]:
    """Records of a registered data set: what the catalogue gives or, for a COCO json, ``IndexedRecords``.

    Those have boxes and no polygons, without the records that cannot be used, which are reported. Whether the image
    files exist is not looked at. Their classes are put into the metadata, as detectron2's reader does.

    Raises:
        FileNotFoundError: json or image folder does not exist; names the data set.
        ValueError: the json cannot be used, or has other classes than the data set was registered with.
        KeyError: no data set of this name.
    """
    if not _is_coco_json(name):
        return DatasetCatalog.get(name)
    metadata = MetadataCatalog.get(name)
    json_file, image_root = os.fspath(metadata.json_file), os.fspath(metadata.image_root) or "."
    try:
        index = open_index(json_file, image_root, need_images=False)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"data set '{name}': {error}; {WHERE}") from error
    classes = index.class_metadata()
    if any(metadata.get(key, value) != value for key, value in classes.items()):
        own = classes["thing_classes"]
        raise ValueError(
            f"{json_file}: its categories ({len(own)}, the first is '{own[0]}') are not those"
            f" that data set '{name}' is registered with ({len(metadata.get('thing_classes', []))})"
        )
    metadata.set(**classes)
    return IndexedRecords(index, image_root, name)


def _is_coco_json(name: str) -> bool:
    """Registered by ``register_coco_instances``, with local files (detectron2 knows URLs, too), for boxes."""
    # a reader of someone else's may give other records for the same json
    if getattr(DatasetCatalog.data.get(name), "__module__", None) != load_coco_json.__module__:
        return False
    metadata = MetadataCatalog.get(name)
    paths = [metadata.get("json_file"), metadata.get("image_root")]
    local = all(path is not None and "://" not in os.fspath(path) for path in paths)
    return local and "keypoint_names" not in metadata.as_dict()
