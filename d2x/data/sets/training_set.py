"""The records of several data sets as one, without a list of dicts for those that have an index."""

import itertools
import logging
from collections.abc import Sequence
from typing import Any, Protocol

from detectron2.data import DatasetFromList, get_detection_dataset_dicts
from detectron2.data.build import filter_images_with_only_crowd_annotations
from torch.utils.data import ConcatDataset

from d2x.data.images import read_size
from d2x.data.index.coco_index import IndexedRecords
from d2x.data.sets.registered_coco import has_index, read_records

logger = logging.getLogger(__name__)


class Records(Protocol):
    """detectron2's dataset dicts, by number: a list or a map-style data set."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int, /) -> dict: ...


def training_records(names: Sequence[str], *, filter_empty: bool) -> Records:
    """Records of the named data sets, one set after the other.

    detectron2's ``get_detection_dataset_dicts`` for data sets that are lists; those that are ``IndexedRecords``, which
    it would not filter, stay what they are, so that neither this nor a worker process holds a dict per annotation. COCO
    jsons that detectron2 has registered, such as ``coco_2017_train``, are read as ``IndexedRecords``, too.

    Args:
        filter_empty: leave out images without an annotation that marks no crowd.

    Raises:
        ValueError: no image is left.
    """
    records: Any  # torch's data sets have no length in their types
    if not any(map(has_index, names)):
        records = get_detection_dataset_dicts(list(names), filter_empty=filter_empty)
        return records
    parts: list[Any] = [_part(name, filter_empty) for name in names]
    if not sum(map(len, parts)):
        raise ValueError(f"no image with an annotation in data set {', '.join(names)}")
    records = parts[0] if len(parts) == 1 else ConcatDataset(parts)
    return records


def are_wide(records: Any) -> list[bool]:
    """(M,) for each record, whether it is wider than high; without making the records of an index."""
    if isinstance(records, ConcatDataset):
        return list(itertools.chain.from_iterable(are_wide(part) for part in records.datasets))
    if isinstance(records, IndexedRecords):
        size = records.sizes()
        return (size[:, 1] > size[:, 0]).tolist()
    return [_is_wide(records[i]) for i in range(len(records))]


def _is_wide(record: dict) -> bool:
    if "width" in record:
        return record["width"] > record["height"]
    height, width = read_size(record["file_name"])  # a folder of images has no sizes until they are read; headers do
    return width > height


def _part(name: str, filter_empty: bool) -> Records:
    records = read_records(name)
    before = len(records)
    if isinstance(records, IndexedRecords):
        records = records.without_empty() if filter_empty else records
    else:
        has_annotations = bool(records) and "annotations" in records[0]
        if filter_empty and has_annotations:
            records = filter_images_with_only_crowd_annotations(list(records))
        records = DatasetFromList(list(records), copy=False)
    if len(records) < before:
        logger.info("%s: %d of %d images have an annotation; the others are left out", name, len(records), before)
    return records
