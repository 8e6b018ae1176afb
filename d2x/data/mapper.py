"""Dataset mapper: detectron2's ``DatasetMapper`` for boxes, made robust to bad files."""

import copy
import logging
import math
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetMapper, MetadataCatalog, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import BoxMode

from d2x.data.images import read_image

logger = logging.getLogger(__name__)

MAX_BAD_IN_A_ROW = 10


class BadImageError(ValueError):
    """An image that cannot be used; the message is one line that names the file.

    A DataLoader raises a worker's error again with the worker's traceback as the message; only the line is kept.
    """

    def __init__(self, message: str):
        super().__init__(message.rsplit(f"{type(self).__name__}: ", 1)[-1].strip())


def make_train_mapper(cfg: CfgNode, augmentations: Sequence[T.Augmentation]) -> "DetectionMapper":
    """Mapper for training: with boxes; an unreadable image is reported and skipped.

    Reads ``DATASETS.TRAIN``, whose metadata may hold ``labelled_classes``, and detectron2's ``INPUT.FORMAT``.
    """
    return DetectionMapper(**_arguments(cfg, augmentations, is_train=True))


def make_test_mapper(cfg: CfgNode, augmentations: Sequence[T.Augmentation]) -> "DetectionMapper":
    """Mapper for evaluation: images only; an unreadable image raises ``BadImageError``."""
    return DetectionMapper(**_arguments(cfg, augmentations, is_train=False))


def _arguments(cfg: CfgNode, augmentations: Sequence[T.Augmentation], *, is_train: bool) -> dict:
    return {**DetectionMapper.from_config(cfg, is_train), "augmentations": list(augmentations)}


class DetectionMapper(DatasetMapper):
    """detectron2's mapper for boxes, with the additions below.

    - Augmentations see the boxes (``get_transform(self, image, boxes)``; (M, 4) xyxy px of the image at that point).
    - Boxes that are not finite or have no area, before or after augmentation, are dropped; the others are clipped.
    - Training images always come with ``instances``, without boxes if the record has no annotations.
    - ``labelled_classes``, (C,) int64 contiguous class ids: the record's own, else its data set's, else left out.
    - ``dataset_name``: the record's own, else the only data set's, else left out.
    - An image that cannot be read or is not of the recorded size: in training it is reported once, counted, and
      ``None`` is returned, at which detectron2's ``MapDataset`` takes another record; ``MAX_BAD_IN_A_ROW`` in a row
      raise ``BadImageError``, as does a single one in evaluation.
    """

    @configurable
    def __init__(
        self,
        is_train: bool,
        *,
        labelled_classes: dict[str, list[int] | None] | None = None,
        fast_decode: bool = True,
        **detectron2_arguments,
    ):
        """
        Args:
            is_train: with ground truth or without.
            labelled_classes: by data set name, the contiguous ids of the classes it is labelled for; None for all.
            fast_decode: see ``d2x.data.images.read_image``.
            detectron2_arguments: those of ``DatasetMapper``.
        """
        super().__init__(is_train, **detectron2_arguments)
        self.labelled_classes = dict(labelled_classes or {})
        self.fast_decode = fast_decode
        self.bad_files: set[str] = set()
        self._bad_in_a_row = 0

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        arguments = {**super().from_config(cfg, is_train), "fast_decode": cfg.INPUT.FAST_DECODE}
        if is_train:
            arguments["labelled_classes"] = {
                name: MetadataCatalog.get(name).get("labelled_classes") for name in cfg.DATASETS.TRAIN
            }
        return arguments

    def __call__(self, dataset_dict: dict) -> dict | None:
        record = copy.deepcopy(dataset_dict)  # changed below; the data set must not be
        try:
            image = self._read(record)
        except BadImageError as error:
            if not self.is_train:
                raise
            self._report(record["file_name"], error)
            return None
        self._bad_in_a_row = 0

        annotations = record.pop("annotations", []) if self.is_train else []
        record.pop("annotations", None)
        annotations = [_with_float_box(annotation) for annotation in annotations if _has_area(annotation)]
        boxes = np.array([annotation["bbox"] for annotation in annotations]).reshape(-1, 4)
        augmented = T.AugInput(image, boxes=boxes)
        transforms = self.augmentations(augmented)
        image = augmented.image
        assert image is not None
        record["image"] = torch.as_tensor(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if self.is_train:
            record["annotations"] = annotations
            self._transform_annotations(record, transforms, image.shape[:2])
            self._add_labelled_classes(record)
        return record

    def _read(self, record: dict) -> np.ndarray:
        """(h, w, 3) uint8 image; fills in a missing height and width."""
        try:
            # Not detectron2's read_image: of a truncated PNG, it takes what was decoded before the end.
            image = read_image(record["file_name"], self.image_format, fast=self.fast_decode)
            detection_utils.check_image_size(record, image)
        except detection_utils.SizeMismatchError as error:
            raise BadImageError(f"{record['file_name']}: {' '.join(str(error).split())}") from error
        except (ValueError, FileNotFoundError) as error:
            raise BadImageError(str(error)) from error
        return image

    def _report(self, file_name: str, error: BadImageError) -> None:
        self._bad_in_a_row += 1
        if file_name not in self.bad_files:
            self.bad_files.add(file_name)
            logger.warning("%s (skipped; bad images so far: %d)", error, len(self.bad_files))
        if self._bad_in_a_row >= MAX_BAD_IN_A_ROW:
            raise BadImageError(f"{self._bad_in_a_row} unusable images in a row, the last: {error}") from error

    def _add_labelled_classes(self, record: dict) -> None:
        if "dataset_name" not in record and len(self.labelled_classes) == 1:
            record["dataset_name"] = next(iter(self.labelled_classes))
        labelled = record.pop("labelled_classes", None)
        if labelled is None:
            labelled = self.labelled_classes.get(record.get("dataset_name", ""))
        if labelled is not None:
            record["labelled_classes"] = torch.as_tensor(list(labelled), dtype=torch.int64)


def _with_float_box(annotation: dict) -> dict:
    """With an xyxy box of floats: detectron2's ``ResizeTransform`` would truncate integers to whole pixels."""
    return {**annotation, "bbox": _xyxy(annotation), "bbox_mode": BoxMode.XYXY_ABS}


def _xyxy(annotation: dict) -> list[float]:
    box = [float(value) for value in annotation["bbox"]]
    return [float(value) for value in BoxMode.convert(box, annotation["bbox_mode"], BoxMode.XYXY_ABS)]


def _has_area(annotation: dict) -> bool:
    x0, y0, x1, y1 = _xyxy(annotation)
    return all(map(math.isfinite, (x0, y0, x1, y1))) and x1 > x0 and y1 > y0
