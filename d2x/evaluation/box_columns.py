"""Detected boxes of many images as a few arrays: what an evaluator keeps, sends between processes and writes."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from detectron2.structures import BoxMode, Instances
from torch import Tensor

try:
    import orjson
except ImportError:  # the same file, some ten times slower
    orjson = None

_ROWS_AT_A_TIME = 20_000


class ImageBoxes(NamedTuple):
    """Detections in one image: its id; boxes (n, 4) xyxy px, scores (n,), classes (n,) contiguous ids; on the CPU."""

    image_id: int | str
    boxes: Tensor
    scores: Tensor
    classes: Tensor

    @classmethod
    def from_instances(cls, image_id: int | str, instances: Instances) -> "ImageBoxes":
        """Reads ``pred_boxes``, ``scores`` and ``pred_classes``."""
        fields = (instances.pred_boxes.tensor, instances.scores, instances.pred_classes)
        return cls(image_id, *(field.detach().cpu() for field in fields))


class BoxColumns(NamedTuple):
    """Detections in I images, N in all, those of an image one after the other.

    Attributes:
        image_ids: I of them, in the order in which the images were seen.
        counts: (I,) int64, detections in each image.
        boxes: (N, 4) float64, (x, y, w, h) px.
        scores: (N,) float64.
        classes: (N,) int64, contiguous ids.
    """

    image_ids: list[int | str]
    counts: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    @classmethod
    def from_images(cls, images: Sequence[ImageBoxes]) -> "BoxColumns":
        counts = np.array([len(image.scores) for image in images], dtype=np.int64)
        if not counts.any():
            nothing = np.empty(0)
            return cls([image.image_id for image in images], counts, np.empty((0, 4)), nothing, nothing.astype(int))
        boxes, scores, classes = (torch.cat([image[field] for image in images]) for field in (1, 2, 3))
        # in the precision of the boxes, as detectron2 does it, or the last bit of a width would differ
        boxes = BoxMode.convert(boxes, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS)
        columns = (boxes.double().numpy(), scores.double().numpy(), classes.long().numpy())
        return cls([image.image_id for image in images], counts, *columns)

    @classmethod
    def join(cls, parts: Sequence["BoxColumns"]) -> "BoxColumns":
        """One after the other."""
        image_ids = [image_id for part in parts for image_id in part.image_ids]
        return cls(image_ids, *(np.concatenate([part[field] for part in parts]) for field in (1, 2, 3, 4)))

    @property
    def images(self) -> np.ndarray:
        """(N,) int64: which image each detection is in, as a place in ``image_ids``."""
        return np.repeat(np.arange(len(self.counts)), self.counts)

    def tensors(self) -> dict:
        """For ``torch.save``; a file that can be loaded with ``weights_only=True``."""
        arrays = {name: torch.from_numpy(getattr(self, name)) for name in ("counts", "boxes", "scores", "classes")}
        return {"image_ids": self.image_ids, **arrays}

    def coco_json(self, category_ids: np.ndarray) -> Iterator[bytes]:
        """The pieces of a json file in COCO's result format, one entry a detection.

        Args:
            category_ids: (N,) int64, what stands for ``classes`` there.
        """
        dumps, images, opening = _dumps(), self.images, b"["
        for start in range(0, len(self.scores), _ROWS_AT_A_TIME):
            rows = slice(start, start + _ROWS_AT_A_TIME)
            ids = [self.image_ids[image] for image in images[rows].tolist()]
            text = dumps(_rows(ids, category_ids[rows].tolist(), self.boxes[rows].tolist(), self.scores[rows].tolist()))
            yield opening + text[1:-1]
            opening = b","
        yield b"]" if len(self.scores) else b"[]"


def _rows(*columns: Iterable) -> list[dict]:
    return [
        {"image_id": image_id, "category_id": category_id, "bbox": box, "score": score}
        for image_id, category_id, box, score in zip(*columns)
    ]


def _dumps():
    return orjson.dumps if orjson else lambda rows: json.dumps(rows).encode()
