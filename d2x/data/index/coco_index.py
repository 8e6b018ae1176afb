"""Index of a COCO json: its usable records as a few arrays, kept on disk, which the next start maps into memory.

Records are made from the arrays when they are asked for. The arrays are not copied by worker processes and, mapped
from a file, are shared by all processes of a machine: memory does not grow with workers or ranks.
"""

import hashlib
import json
import logging
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.structures import BoxMode
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from safetensors.torch import load_file
from torch.utils.data import Dataset

from d2x.atomic_files import atomic_cache_write
from d2x.data.index.scan import Scan

logger = logging.getLogger(__name__)

_FORMAT = 1
_DTYPES = {
    "size": np.int32,
    "image_id": np.int64,
    "image_text": np.uint8,
    "image_text_end": np.int64,
    "file_text": np.uint8,
    "file_text_end": np.int64,
    "first": np.int64,
    "box": np.float64,
    "category": np.int32,
    "crowd": np.uint8,
}


class DamagedIndexError(Exception):
    """An index file that is not what was written; it is to be made anew."""


class CocoIndex:
    """Usable images and annotations of one json; annotations sorted by image.

    Attributes:
        header: what else is to be known, json values: ``categories`` (in the order of their ids) and more.
        arrays: size (M, 2) int32 as (height, width); image_id (M,) int64, or its text; file names as text; first
            (M + 1,) int64, where each image's annotations start; box (A, 4) float64 (x, y, w, h) px; category (A,)
            int32 contiguous; crowd (A,) uint8. A text is kept as the bytes of all and where each ends.
        path: the file it was read from, if any.
    """

    def __init__(self, header: dict[str, Any], arrays: dict[str, np.ndarray], path: Path | None = None):
        self.header, self.arrays, self.path = header, arrays, path

    @classmethod
    def from_scan(cls, scan: Scan, **header: Any) -> "CocoIndex":
        images, annotations = scan.images, scan.annotations
        kept = np.flatnonzero(annotations.keep)
        image = annotations.image[kept]
        order = kept[np.argsort(image, kind="stable")]
        counts = np.bincount(image, minlength=len(images))
        arrays = {
            "size": np.stack([images.height, images.width], axis=1),
            "first": np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            "box": annotations.boxes[order],
            "category": annotations.category[order],
            "crowd": annotations.crowd[order],
        }
        arrays["file_text"], arrays["file_text_end"] = _pack(images.file_names)
        if images.ids and isinstance(images.ids[0], str):
            arrays["image_text"], arrays["image_text_end"] = _pack(images.ids)
        else:
            arrays["image_id"] = np.array(images.ids, dtype=np.int64)
        return cls({**header, "categories": scan.categories}, arrays)

    def __len__(self) -> int:
        return len(self.arrays["size"])

    def save(self, path: Path) -> None:
        """
        Raises:
            OSError: it cannot be written.
        """
        header = {**self.header, "format": _FORMAT, "checksum": _checksum(self.arrays)}
        with atomic_cache_write(path) as file:
            file.write(save(self.arrays, metadata={"header": json.dumps(header)}))

    @classmethod
    def open(cls, path: Path) -> "CocoIndex":
        """Map a saved index into memory.

        Raises:
            FileNotFoundError: no such file.
            DamagedIndexError: truncated, changed, of another version, or no index.
        """
        if not path.is_file():
            raise FileNotFoundError(path)
        try:
            with safe_open(path, framework="numpy") as file:
                header = json.loads((file.metadata() or {}).get("header", "null"))
            arrays = {name: tensor.numpy() for name, tensor in load_file(path).items()}
        except (SafetensorError, ValueError, OSError, KeyError, TypeError) as error:
            raise DamagedIndexError(str(error)) from error
        if not isinstance(header, dict) or header.get("format") != _FORMAT:
            raise DamagedIndexError("of another version")
        if any(array.dtype != _DTYPES.get(name) for name, array in arrays.items()):
            raise DamagedIndexError("no data set index")
        if header.get("checksum") != _checksum(arrays):
            raise DamagedIndexError("its checksum is wrong")
        return cls(header, arrays, path)

    def __reduce__(self):
        """A process that is started anew maps the file again instead of being sent its content."""
        return (CocoIndex.open, (self.path,)) if self.path else (CocoIndex, (self.header, self.arrays))

    def class_metadata(self) -> dict[str, Any]:
        """What detectron2's ``Metadata`` is to know of the categories."""
        categories = self.header["categories"]
        return {
            "thing_classes": [category["name"] for category in categories],
            "thing_dataset_id_to_contiguous_id": {category["id"]: i for i, category in enumerate(categories)},
        }

    def file_name(self, image: int) -> str:
        return _unpack(self.arrays, "file_text", image)

    def image_id(self, image: int) -> int | str:
        if "image_id" in self.arrays:
            return int(self.arrays["image_id"][image])
        return _unpack(self.arrays, "image_text", image)


class IndexedRecords(Sequence[dict], Dataset):
    """Records in detectron2's format, made when they are asked for; both a sequence and a map-style ``Dataset``.

    Args:
        index: where they come from.
        image_root: folder that file names are relative to.
        dataset_name: goes into each record.
        images: (N,) which images of the index, in this order; None for all.
    """

    def __init__(self, index: CocoIndex, image_root: str, dataset_name: str, images: np.ndarray | None = None):
        self.coco_index, self.image_root, self.dataset_name, self._images = index, image_root, dataset_name, images

    def __len__(self) -> int:
        return len(self.coco_index) if self._images is None else len(self._images)

    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        position = number + len(self) if number < 0 else number
        if not 0 <= position < len(self):
            raise IndexError(f"record {number} of {len(self)}")
        return self._record(position if self._images is None else int(self._images[position]))

    def without_empty(self) -> "IndexedRecords":
        """Only images with an annotation that marks no crowd, as detectron2 filters for training."""
        arrays = self.coco_index.arrays
        single = np.concatenate([[0], np.cumsum(arrays["crowd"] == 0)])[arrays["first"]]  # before each image
        images = np.flatnonzero(np.diff(single))
        if self._images is not None:
            images = self._images[np.isin(self._images, images)]
        return IndexedRecords(self.coco_index, self.image_root, self.dataset_name, images)

    def sizes(self) -> np.ndarray:
        """(N, 2) int32, (height, width) of each record's image, px."""
        size = self.coco_index.arrays["size"]
        return size if self._images is None else size[self._images]

    def _record(self, image: int) -> dict:
        arrays = self.coco_index.arrays
        first, end = arrays["first"][image : image + 2].tolist()
        columns = (arrays[name][first:end].tolist() for name in ("crowd", "box", "category"))
        height, width = arrays["size"][image].tolist()
        return {
            "file_name": os.path.join(self.image_root, self.coco_index.file_name(image)),
            "height": height,
            "width": width,
            "image_id": self.coco_index.image_id(image),
            "annotations": [
                {"iscrowd": crowd, "bbox": box, "category_id": category, "bbox_mode": BoxMode.XYWH_ABS}
                for crowd, box, category in zip(*columns)
            ],
            "dataset_name": self.dataset_name,
        }


def _pack(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Texts as (all their bytes, (N,) where each ends)."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    ends = np.cumsum([len(text) for text in encoded], dtype=np.int64)
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), ends


def _unpack(arrays: dict[str, np.ndarray], name: str, number: int) -> str:
    ends = arrays[f"{name}_end"]
    start = ends[number - 1] if number else 0
    return arrays[name][start : ends[number]].tobytes().decode("utf-8", "surrogatepass")


def _checksum(arrays: dict[str, np.ndarray]) -> str:
    """Finds damage; no protection from who can write into the cache folder."""
    total = {name: zlib.crc32(np.ascontiguousarray(array).data.cast("B")) for name, array in sorted(arrays.items())}
    shapes = {name: list(array.shape) for name, array in sorted(arrays.items())}
    return hashlib.sha256(json.dumps([total, shapes]).encode()).hexdigest()
