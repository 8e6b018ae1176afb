"""DETR's training data as released: detectron2's ``DatasetMapper``, Pillow for everything."""

from detectron2.config import CfgNode
from detectron2.data import DatasetMapper
from detectron2.data import transforms as T


def plain_mapper(cfg: CfgNode) -> DatasetMapper:
    """Flip, half of the time resize and crop, resize: the numbers are those of ``INPUT`` in a Plain-DETR config."""
    node = cfg.INPUT.PLAIN_DETR
    crop = T.AugmentationList(
        [
            T.ResizeShortestEdge(node.CROP_RESIZE, sample_style="choice"),
            T.RandomCrop("absolute_range", node.CROP_SIZE),
        ]
    )
    augmentations = [
        T.RandomFlip(),
        T.RandomApply(crop, prob=node.CROP_PROBABILITY),
        T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING),
    ]
    return DatasetMapper(is_train=True, augmentations=augmentations, image_format=cfg.INPUT.FORMAT)
